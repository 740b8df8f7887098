// What the lightning indexer scores:
//
//   score[i, j] = k_scale[j] * sum_h weights[i, h] * relu(sum_d q[i, h, d] * k[j, d])
//
// The order of the sums, the same for every instruction set, tile and thread count: over d as in a GEMM
// (gemm/gemm.h; FP4 in pieces of 32, each times both its scales), over h a chain of FMAs from zero.
#pragma once
#include "core/types.h"

namespace sk::indexer {

constexpr int64_t kFp4Group = 32;  // values that share a scale

// The columns of a row that count, or the keys that a query sees.
struct Range {
  int32_t first, last;  // half open, 0 <= first <= last

  constexpr int64_t size() const { return last - first; }
};

// Ranges as callers give them, [rows]; null: from the first, to the last.
struct Bounds {
  const int32_t *starts, *ends;

  constexpr Range range_of(int64_t row, int64_t cols) const {
    const int64_t first = starts != nullptr ? min(max(starts[row], 0), cols) : 0;
    const int64_t last = ends != nullptr ? min(ends[row], cols) : cols;
    return {static_cast<int32_t>(first), static_cast<int32_t>(max(first, last))};
  }
};

// On a device each row finds its own range: from bounds, or how long its sequence is.
struct RangesOnDevice {
  Bounds bounds;
  const int32_t* lens;  // [sequences] up to their last query, or of each query [rows]; null: bounds count
  bool each;
  int64_t cols;

  constexpr Range range_of(int64_t row, int64_t rows_a_sequence) const {
    if (lens == nullptr) return bounds.range_of(row, cols);
    const int64_t n = rows_a_sequence, sequence = row / n;
    const int64_t seen = each ? lens[row] : max(lens[sequence], 0) - n + row % n + 1;
    return {0, static_cast<int32_t>(min(max(seen, 0), cols))};
  }
};

struct Queries {
  const uint8_t* data;        // [rows, heads, dim] of dtype; u8 is FP4
  Dtype dtype;
  int64_t stride;             // bytes from head to head
  Rows<const uint8_t> scale;  // of FP4: e8m0 [rows * heads, dim / 32]
  Rows<const float> weights;  // [rows, heads]
  int64_t rows, heads, dim;
};

// Keys of the queries' dtype, one after the other or in pages. A page is its keys, then their scales.
struct Keys {
  const uint8_t* data;
  int64_t stride;         // bytes from key to key
  const uint8_t* scale;   // f32 [keys], of FP4 e8m0 [keys, dim / 32]; null: none, or in pages
  int64_t scale_bytes;    // of a key, 0: it has none
  const int32_t* table;   // [sequences, table_stride] pages; null: no pages
  int64_t table_stride, page_size, page_bytes, page_scale_bytes;  // page_scale_bytes: a key's, padding included
  int64_t pages;
};

struct Problem {
  Queries queries;
  Keys keys;
  const Range* ranges;      // [rows]
  int64_t rows_a_sequence;  // consecutive queries with the same keys
  RangesOnDevice on_device = {};  // instead of ranges
};

}  // namespace sk::indexer
