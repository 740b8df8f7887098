// out[r, :] = a[r, :] @ w[e].T + bias, for the rows of every group; gemm, grouped_gemm and grouped_gemm_masked are
// this.
#pragma once
#include "core/variant.h"
#include "gemm/device.h"

namespace sk::gemm_groups {

// Some rows of a that meet the same expert.
struct Group {
  int64_t expert, first_row, rows;  // a's row and out's row: the same
};

struct Args {
  gemm::Weights weights;       // of expert 0
  Rows<const void> a;          // [rows, k]
  Dtype a_dtype;               // f32, bf16 or e4m3
  Rows<const float> a_scale;   // [rows, ceil(k / a_group)] or null
  int64_t a_group;
  const Group* groups;
  int64_t group_count, rows;   // rows of a and out
  const void* bias;            // [n] or null
  Dtype bias_dtype;
  void* out;                   // [rows, n]; rows of no group are left alone
  Dtype out_dtype;             // f32 or bf16
  gemm::DeviceGroups on_device;  // instead of groups, on a device
  gemm::Blocking blocking;
};

SK_CPU_VARIANTS

}  // namespace sk::gemm_groups
