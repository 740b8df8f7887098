// The tensor core: 16x8 tiles of D = A B + C, with products and sums as settings.truncating says.
#include <algorithm>

#include "warp.h"

namespace model {
namespace {

struct Batch {
  Element a, b;
  int k;
  const Mma* steps;
  int count;
  u32* registers;
};

f32 value_of(Element e, u32 word, int i) {
  switch (e) {
    case Element::bf16:
      return as<f32>(i == 0 ? word << 16 : word & 0xffff0000u);
    case Element::f16:
      return widen(f16{static_cast<u16>(word >> 16 * i)});
    case Element::e4m3:
      return from_e4m3(static_cast<u8>(word >> 8 * i));
    default:
      return from_e5m2(static_cast<u8>(word >> 8 * i));
  }
}

// All 256 codes, once.
const f32* fp8_table(Element e) {
  static f32 tables[2][256];
  static const bool made = [] {
    for (int c = 0; c < 256; ++c) {
      tables[0][c] = from_e4m3(static_cast<u8>(c));
      tables[1][c] = from_e5m2(static_cast<u8>(c));
    }
    return true;
  }();
  (void)made;
  return tables[e == Element::e5m2];
}

bool is_fp8(Element e) { return e == Element::e4m3 || e == Element::e5m2; }

// Row-major A [16, k] and B [k, 8] out of the fragments of the lanes.
struct Tile { f32 a[16][32], b[32][8]; };
void unpack(Warp& w, const Batch& any, const Mma& step, Tile& t) {
  const int each = is_fp8(any.a) ? 4 : 2, half = 4 * each;  // elements of a register; columns of a quarter of A
  const f32* table_a = is_fp8(any.a) ? fp8_table(any.a) : nullptr;
  const f32* table_b = is_fp8(any.b) ? fp8_table(any.b) : nullptr;
  for (int l = 0; l < 32; ++l) {
    const u32* r = brought<Batch>(w, l).registers;
    const int row = l / 4, column = l % 4 * each;
    for (int q = 0; q < any.k / half * 2; ++q)
      for (int i = 0; i < each; ++i) {
        const u32 word = r[step.a[q]];
        t.a[row + q % 2 * 8][column + i + q / 2 * half] =
            table_a != nullptr ? table_a[word >> 8 * i & 255] : value_of(any.a, word, i);
      }
    for (int q = 0; q < any.k / half; ++q)
      for (int i = 0; i < each; ++i) {
        const u32 word = r[step.b[q]];
        t.b[column + i + q * half][row] =
            table_b != nullptr ? table_b[word >> 8 * i & 255] : value_of(any.b, word, i);
      }
  }
}

void multiply(const Tile& t, int k, f32 (&c)[16][8]) {
  if (!settings.truncating) {
    for (int i = 0; i < 16; ++i) {
      f32 sum[8] = {};
      for (int p = 0; p < k; ++p)
        for (int j = 0; j < 8; ++j) sum[j] += t.a[i][p] * t.b[p][j];
      for (int j = 0; j < 8; ++j) c[i][j] += sum[j];
    }
    return;
  }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      f64 sum = c[i][j];
      for (int p = 0; p < k; ++p) sum += static_cast<f64>(t.a[i][p]) * static_cast<f64>(t.b[p][j]);
      c[i][j] = directed<Round::zero>(sum);
    }
}

void run_batch(Warp& w, u32) {
  const Batch& any = brought<Batch>(w, 0);
  for (int s = 0; s < any.count; ++s) {
    const Mma& step = any.steps[s];
    Tile t;
    unpack(w, any, step, t);
    f32 c[16][8];
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i)
        c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = as<f32>(brought<Batch>(w, l).registers[step.c[i]]);
    multiply(t, any.k, c);
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i)
        brought<Batch>(w, l).registers[step.d[i]] = bits(c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
  }
  counters.macs += static_cast<u64>(any.count) * 16 * 8 * static_cast<u64>(any.k);
}

}  // namespace

void mma(Element a, Element b, int k, const Mma* steps, int count, u32* registers, int line) {
  Batch batch = {a, b, k, steps, count, registers};
  warp_operation("mma.sync", ~0u, run_batch, &batch, line);
}

}  // namespace model
