// The types that cross every border of the library.
#pragma once
#include <cstdint>

#define SK_INLINE static inline __attribute__((always_inline))

namespace sk {

struct bf16 { uint16_t bits; };

// The order is that of DTYPES in sparsekern/schema.py.
enum class Dtype : int { f32, bf16, e4m3, e8m0, u8, i32, i64, f16, f64, i8, boolean, other };

constexpr int64_t size_of(Dtype t) {
  switch (t) {
    case Dtype::f64:
    case Dtype::i64:
      return 8;
    case Dtype::f32:
    case Dtype::i32:
      return 4;
    case Dtype::bf16:
    case Dtype::f16:
      return 2;
    default:
      return 1;
  }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows of a tensor whose last dimension is contiguous: what a row-wise kernel reads. T is void where the
// element type is known only at run time.
template <class T>
struct Rows {
  T* data;
  int64_t stride;  // elements from one row to the next
};

}  // namespace sk
