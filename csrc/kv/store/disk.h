// Blocks of one size in files. A folder holds segments of slots; a slot is a header and a block.
//
//   header, 64 bytes: magic, version, CRC-32C of the header, kind of cache, key, bytes and CRC-32C of the block,
//   number
//
// A slot is written block first, header last, and cleared by overwriting its header: whenever a process dies, a slot
// with a good header holds its whole block as far as the kernel got it. What the kernel or the disk lost or changed
// afterwards, the checksums find when the block is read. Files grow by append up to the number of slots; then, slots
// of blocks that are gone are used again. One process at a time: a lock on the folder.
//
// Not for several threads at once on one slot; different slots are independent.
#pragma once
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sk::kv {

struct Key {  // the name of a block: a hash of all that it depends on
  uint64_t high = 0, low = 0;
  bool operator==(const Key&) const = default;
};

struct Span {
  char* data;
  int64_t bytes;
};

enum class Status : uint8_t { pending, ok, missing, corrupt, io_error, full };

struct StoreError : std::runtime_error { using std::runtime_error::runtime_error; };

class Disk {
 public:
  struct Options {
    std::string folder;
    int64_t block_bytes = 0;
    int64_t slots = 0;
    uint64_t kind = 0;  // blocks of another kind of cache are not these
    int64_t segment_bytes = int64_t{1} << 30;
  };

  // Locks the folder and finds the blocks in it; throws StoreError.
  explicit Disk(Options options);
  ~Disk();
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  struct Found {
    Key key;
    int64_t slot;
    uint64_t number;  // the larger, the later written
  };
  // Those that were there when it was opened, in the order in which they were written; and how many were no good.
  const std::vector<Found>& found() const { return found_; }
  int64_t dropped() const { return dropped_; }

  Status write(int64_t slot, const Key& key, const char* block);
  Status read(int64_t slot, const Key& key, const std::vector<Span>& to);
  void clear(int64_t slot);
  bool flush();  // to the disk itself; false where that failed

 private:
  struct Header;
  void lock();
  void recover();
  void recover_segment(int64_t segment, const std::string& path);
  std::string path_of(int64_t segment) const;
  int file_of(int64_t slot, bool create);  // -1: cannot be opened
  int64_t offset_of(int64_t slot) const { return slot % segment_slots_ * slot_bytes_; }

  Options options_;
  int64_t slot_bytes_, segment_slots_;
  int lock_ = -1;
  std::mutex mutex_;  // of files_ and number_
  std::vector<int> files_;
  uint64_t number_ = 0;
  std::vector<Found> found_;
  int64_t dropped_ = 0;
};

}  // namespace sk::kv
