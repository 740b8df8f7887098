// The tensor core of every GPU since sm_80.
#pragma once
#include <cstdint>

namespace sk::cuda {

// d[16, 8] += a[16, 16] b[16, 8]. Lane 4 g + q holds, as pairs of bf16,
//   a: rows g, g + 8, at columns 2q (the first two words) and 2q + 8;   b: column g, at rows 2q and 2q + 8;
//   d: row g at columns 2q, 2q + 1, and row g + 8.
__device__ inline void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two bf16 times two bf16, exactly where the products are representable. The addend -0 keeps the sign of zero.
__device__ inline uint32_t multiply_pairs(uint32_t x, uint32_t y) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(0x80008000u));
  return r;
}

}  // namespace sk::cuda
