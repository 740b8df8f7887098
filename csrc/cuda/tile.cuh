// Tiles of matrices in shared memory, and their way into the tensor core.
//
// A product's k may be taken in any order, as long as both sides take the same. So lane q of a group of four takes
// eight consecutive k of every 32, whatever the format: one load of 16, 8 or 4 bytes a row, decoded to four pairs of
// bf16, feeds two steps of mma.m16n8k16, and no ldmatrix is needed.
#pragma once
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/mma.cuh"

namespace sk::cuda {

constexpr int kTileK = 64;   // k of a tile
constexpr int kStepK = 32;   // k that a fragment covers

// Rows of kTileK elements of kBits bits: 16 (bf16), 8 (e4m3) or 4 (e2m1). They are 128, 64 or 32 bytes long, and lie
// in chunks of 16 bytes, whose order alternates from row to row so that the lanes of a fragment meet different banks.
template <int kBits>
struct TileRows {
  static constexpr int kBytes = kTileK * kBits / 8, kChunks = kBytes / 16, kElements = 128 / kBits;  // of a chunk
  static constexpr int kShift = kBits == 16 ? 0 : kBits == 8 ? 1 : 2;

  __device__ static int chunk_at(int row, int chunk) {
    return row * kBytes + ((chunk ^ ((row >> kShift & 1) << (2 - kShift))) << 4);
  }
};

// --- codes to pairs of bf16, exactly: the bits of a code where bf16 has them are its value times a power of two.

__device__ inline void decode_e4m3(uint32_t codes, uint32_t* pairs) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t x = __byte_perm(codes, 0, i == 0 ? 0x1404 : 0x3424);  // codes in the upper bytes of the halves
    pairs[i] = multiply_pairs((x & 0x80008000u) | (x >> 4 & 0x07f007f0u), 0x7b807b80u);  // 2^120
  }
  if (((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u) {  // a NaN, which looks like 480
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if ((codes >> 8 * i & 0x7f) == 0x7f) pairs[i / 2] |= i % 2 == 0 ? 0x7fc0u : 0x7fc00000u;
  }
}
__device__ inline void decode_e2m1(uint32_t codes, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t x = __byte_perm(codes, 0, 0x4040 | i << 8 | i);  // byte i, twice
    const uint32_t magnitudes = (x << 6 & 0x01c0u) | (x << 2 & 0x01c00000u);
    pairs[i] = multiply_pairs(magnitudes | (x << 12 & 0x8000u) | (x << 8 & 0x80000000u), 0x7e807e80u);  // 2^126
  }
}

// Eight elements of a row, k = 32 block + 8 q and on, as pairs.
template <int kBits>
__device__ inline void load_pairs(const uint8_t* tile, int row, int block, int q, uint32_t (&pairs)[4]) {
  using Rows = TileRows<kBits>;
  const int byte = (block * kStepK + q * 8) * kBits / 8;
  const uint8_t* p = tile + Rows::chunk_at(row, byte / 16) + byte % 16;
  if constexpr (kBits == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    pairs[0] = v.x, pairs[1] = v.y, pairs[2] = v.z, pairs[3] = v.w;
  } else if constexpr (kBits == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    decode_e4m3(v.x, pairs);
    decode_e4m3(v.y, pairs + 2);
  } else {
    decode_e2m1(*reinterpret_cast<const uint32_t*>(p), pairs);
  }
}

// Copies rows of k elements into a tile: kTileK of them from `first` on, zeros past k. row_at(r): where row r begins,
// or null for a row of zeros. For all threads of the block; the caller commits.
template <int kBits, int kRows, int kThreads, class RowAt>
__device__ inline void copy_tile(uint8_t* tile, int64_t first, int64_t k, const RowAt& row_at) {
  using Rows = TileRows<kBits>;
  constexpr int kAll = kRows * Rows::kChunks;
#pragma unroll
  for (int base = 0; base < kAll; base += kThreads) {
    const int i = base + threadIdx.x, row = i / Rows::kChunks, chunk = i % Rows::kChunks;
    if (kAll % kThreads != 0 && i >= kAll) break;
    const uint8_t* from = row_at(row);
    const int64_t at = first + chunk * Rows::kElements, left = min(k - at, int64_t{Rows::kElements});
    const int bytes = from == nullptr || left <= 0 ? 0 : static_cast<int>(left * kBits / 8);
    copy_async(shared_address(tile + Rows::chunk_at(row, chunk)), bytes == 0 ? nullptr : from + at * kBits / 8,
               bytes);
  }
}

}  // namespace sk::cuda
