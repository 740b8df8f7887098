// y[r, :] = x[r, :] @ H / sqrt(dim), H_1 = [1], H_2n = [[H_n, H_n], [H_n, -H_n]]
#pragma once
#include "core/variant.h"

namespace sk::hadamard {

struct Args {
  Rows<const void> x;  // [rows, dim] of dtype, dim a power of two
  Dtype dtype;
  void* y;             // [rows, dim] of dtype
  float* scratch;      // [threads(), dim]; on a device [rows, dim], where dim is more than kInShared
  int64_t rows, dim;
};

constexpr int64_t kInShared = 8192;

SK_CPU_VARIANTS

}  // namespace sk::hadamard
