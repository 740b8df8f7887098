// The GEMM of the tensor cores: bf16 or e4m3 rows, bf16, e4m3 or e2m1 weights, decoded to bf16 in registers.
//
// A block computes kRows x 128 results. Its warps stand in a row of four (two rows where kRows is 64), 32 columns
// each. Tiles of 64 k come through a ring of stages that cp.async fills two ahead. Where there are scales, sums of
// the k that share them are kept apart and added, scaled, when a scale changes.
#pragma once
#include "cuda/codes.cuh"
#include "cuda/tile.cuh"
#include "gemm/groups.cuh"

namespace sk::gemm::cuda {

template <int kABits, int kBBits, int kRows>
struct TensorGemm {
  static constexpr int kColumns = 128, kStages = 3;
  static constexpr int kWarpRows = kRows == 64 ? 2 : 1, kThreads = kWarpRows * 4 * kWarp;
  static constexpr int kMTiles = kRows / kWarpRows / 16, kNTiles = 4;
  static constexpr int kABytes = kRows * TileRows<kABits>::kBytes, kBBytes = kColumns * TileRows<kBBits>::kBytes;
  static constexpr int kShared = kStages * (kABytes + kBBytes);

  using Sums = float[kMTiles][kNTiles][4];

  __device__ static void compute(const uint8_t* a, const uint8_t* b, int block, int row, int column, Sums& sums) {
    const int group = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
    uint32_t rows[kMTiles][2][4];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        load_pairs<kABits>(a, row + m * 16 + half * 8 + group, block, q, rows[m][half]);
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
      uint32_t columns[4];
      load_pairs<kBBits>(b, column + n * 8 + group, block, q, columns);
#pragma unroll
      for (int step = 0; step < 4; step += 2)
#pragma unroll
        for (int m = 0; m < kMTiles; ++m)
          multiply_add(sums[m][n], rows[m][0][step], rows[m][1][step], rows[m][0][step + 1], rows[m][1][step + 1],
                       columns[step], columns[step + 1]);
    }
  }
};

template <int kABits, int kBBits, int kRows>
__global__ void __launch_bounds__(TensorGemm<kABits, kBBits, kRows>::kThreads)
    tensor_gemm(const DeviceArgs p, int64_t tiles, int64_t promote) {
  using Gemm = TensorGemm<kABits, kBBits, kRows>;
  extern __shared__ __align__(128) uint8_t stages[];
  uint8_t* const a_stages = stages;
  uint8_t* const b_stages = stages + Gemm::kStages * Gemm::kABytes;

  const RowTile tile = find_tile<kRows>(p, blockIdx.x % tiles);
  if (tile.rows <= 0) return;
  const int64_t first_column = blockIdx.x / tiles * Gemm::kColumns;
  const Weights& w = p.weights;
  const int64_t k = tile.zero ? 0 : w.k, steps = ceil_div(k, kTileK);
  const uint8_t* const b = w.data + tile.expert * w.expert_bytes;

  const auto a_row = [&](int r) -> const uint8_t* {
    if (r >= tile.rows) return nullptr;
    const int64_t row = p.a_row == nullptr ? tile.first + r : p.a_row[tile.first + r];
    if (static_cast<uint64_t>(row) >= static_cast<uint64_t>(p.a_rows)) return nullptr;
    return static_cast<const uint8_t*>(p.a.data) + row * p.a.stride * (kABits / 8);
  };
  const auto b_row = [&](int n) { return first_column + n < w.n ? b + (first_column + n) * w.row_bytes : nullptr; };
  const auto fetch = [&](int64_t step) {
    if (step < steps) {
      const int at = static_cast<int>(step % Gemm::kStages);
      copy_tile<kABits, kRows, Gemm::kThreads>(a_stages + at * Gemm::kABytes, step * kTileK, k, a_row);
      copy_tile<kBBits, Gemm::kColumns, Gemm::kThreads>(b_stages + at * Gemm::kBBytes, step * kTileK, k, b_row);
    }
    copy_commit();  // also an empty group: they are counted
  };

  const int warp = threadIdx.x / kWarp, group = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
  const int row = warp / 4 * (Gemm::kMTiles * 16), column = warp % 4 * 32;
  typename Gemm::Sums sums = {}, part = {};
  // The sums of the k up to here, which share their scales.
  const auto add_part = [&](int64_t done) {
    float b_scale[Gemm::kNTiles][2];
#pragma unroll
    for (int n = 0; n < Gemm::kNTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t at = min(first_column + column + n * 8 + q * 2 + i, w.n - 1);
        const int64_t scale =
            tile.expert * w.expert_scales + at / w.block_n * ceil_div(w.k, w.block_k) + (done - 1) / w.block_k;
        b_scale[n][i] = w.scale == nullptr ? 1.0f : scale_at(w.scale, w.scale_dtype, scale);
      }
#pragma unroll
    for (int m = 0; m < Gemm::kMTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row + m * 16 + half * 8 + group;
        float a_scale = 1.0f;
        if (p.a_scale.data != nullptr && r < tile.rows) {
          const int64_t at = p.a_row == nullptr ? tile.first + r : max(p.a_row[tile.first + r], 0);
          a_scale = p.a_scale.data[at * p.a_scale.stride + (done - 1) / p.a_group];
        }
#pragma unroll
        for (int n = 0; n < Gemm::kNTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = part[m][n][half * 2 + i];
            sums[m][n][half * 2 + i] = fmaf(x, a_scale * b_scale[n][i], sums[m][n][half * 2 + i]);
            x = 0.0f;
          }
      }
  };

#pragma unroll
  for (int s = 0; s < Gemm::kStages - 1; ++s) fetch(s);
  for (int64_t step = 0; step < steps; ++step) {
    copy_wait<Gemm::kStages - 2>();
    __syncthreads();  // the stage has landed for all, and the one before is free
    fetch(step + Gemm::kStages - 1);
    const int at = static_cast<int>(step % Gemm::kStages);
#pragma unroll
    for (int block = 0; block < kTileK / kStepK; ++block) {
      Gemm::compute(a_stages + at * Gemm::kABytes, b_stages + at * Gemm::kBBytes, block, row, column, part);
      const int64_t done = step * kTileK + (block + 1) * kStepK;
      if (promote != 0 && (done % promote == 0 || (done >= k && done - kStepK < k))) add_part(min(done, k));
    }
  }

  const bool whole = w.n % 2 == 0 && reinterpret_cast<uintptr_t>(p.out) % 8 == 0;  // pairs can be stored as such
#pragma unroll
  for (int m = 0; m < Gemm::kMTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + m * 16 + half * 8 + group;
      if (r >= tile.rows) continue;
#pragma unroll
      for (int n = 0; n < Gemm::kNTiles; ++n) {
        const int64_t c = first_column + column + n * 8 + q * 2;
        float x[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          x[i] = promote != 0 ? sums[m][n][half * 2 + i] : part[m][n][half * 2 + i];
          if (p.bias != nullptr && c + i < w.n) x[i] += value_at(p.bias, p.bias_dtype, c + i);
        }
        if (c >= w.n) continue;
        const int64_t at = (tile.first + r) * w.n + c;
        if (p.out_dtype == Dtype::f32) {
          float* out = static_cast<float*>(p.out) + at;
          if (whole)
            *reinterpret_cast<float2*>(out) = make_float2(narrow<float>(x[0]), narrow<float>(x[1]));
          else
            for (int i = 0; i < 2 && c + i < w.n; ++i) out[i] = narrow<float>(x[i]);
        } else {
          bf16* out = static_cast<bf16*>(p.out) + at;
          if (whole)
            *reinterpret_cast<uint32_t*>(out) = bf16_bits(x[0]) | bf16_bits(x[1]) << 16;
          else
            for (int i = 0; i < 2 && c + i < w.n; ++i) out[i] = narrow<bf16>(x[i]);
        }
      }
    }
}

template <int kABits, int kBBits, int kRows>
void start_tensor_gemm(const DeviceArgs& p, int64_t promote, void* stream) {
  using Gemm = TensorGemm<kABits, kBBits, kRows>;
  const int64_t tiles = most_tiles(p, kRows);
  launch(tensor_gemm<kABits, kBBits, kRows>, tiles * ceil_div(p.weights.n, Gemm::kColumns), Gemm::kThreads,
         Gemm::kShared, stream, p, tiles, promote);
}

// Few rows an expert: tiles of 16.
template <int kABits, int kBBits>
void start_tensor_gemm(const DeviceArgs& p, int64_t promote, void* stream) {
  const int64_t groups = max(p.groups.experts, 1),
                rows = p.groups.counts != nullptr ? p.groups.most : p.rows / groups;
  rows <= 16 ? start_tensor_gemm<kABits, kBBits, 16>(p, promote, stream)
             : start_tensor_gemm<kABits, kBBits, 64>(p, promote, stream);
}

}  // namespace sk::gemm::cuda
