// CRC-32C (Castagnoli), the checksum of iSCSI, ext4 and RocksDB: x86 has an instruction for it. RFC 3720, B.4.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sk::kv {

// Of some bytes, or of what came before and these: crc32c(crc32c(0, a), b) is that of a and b together.
uint32_t crc32c(uint32_t crc, const void* data, size_t size);

// The same, a byte at a time: for processors without the instruction, and for tests.
uint32_t crc32c_by_table(uint32_t crc, const void* data, size_t size);

}  // namespace sk::kv
