// GEMMs on a device: c[r, :] = a[r, :] w[expert of r]^T. What csrc/gemm/cuda.cu takes.
#pragma once
#include "gemm/gemm.h"

namespace sk::gemm {

// Which expert a row meets. Neither pointer: all meet expert 0.
struct DeviceGroups {
  const int32_t* offsets;  // [experts + 1] where each expert's rows begin
  const int32_t* counts;   // [experts] of the first `most` rows of each expert's slice
  int64_t experts, most;
};

struct DeviceArgs {
  Weights weights;            // of expert 0, in rows
  Rows<const void> a;         // [rows, k]
  Dtype a_dtype;              // f32, bf16 or e4m3
  Rows<const float> a_scale;  // [rows, ceil(k / a_group)] or null
  int64_t a_group;
  const int32_t* a_row;       // row r is a's row a_row[r], zeros where that is none of its rows; null: row r
  int64_t a_rows;             // that a has
  DeviceGroups groups;
  int64_t rows;
  const void* bias;           // [n] or null
  Dtype bias_dtype;
  void* out;                  // [rows, n]; with offsets, rows past the last one become zero
  Dtype out_dtype;
};

void multiply_on_device(const DeviceArgs& args, void* stream);

}  // namespace sk::gemm
