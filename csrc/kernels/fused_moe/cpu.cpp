#include "core/arena.h"
#include "core/parallel.h"
#include "kernels/fused_moe/op.h"
#include "moe/permutation.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::fused_moe::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "gemm/items.h"
#include "gemm/operand.h"

constexpr int64_t kHiddenBytes = 24 << 20;  // scratch for the hidden rows of a chunk of tokens
constexpr int64_t kOutColumns = gemm::kPanel;

// The rows of some tokens, sorted by expert.
struct Routed {
  int64_t first_token, tokens, rows;
  const int32_t *expert_offsets, *row_token, *row_slot, *slot_row;
  int64_t rows_of(int64_t e) const { return expert_offsets[e + 1] - expert_offsets[e]; }
};

Routed route(const Args& a, int64_t first, int64_t tokens, Scratch& scratch) {
  const moe::Slots slots = {a.ids + first * a.top_k, tokens, a.top_k, a.experts};
  int32_t* const counts = scratch.take<int32_t>(slots.blocks() * a.experts);
  count_slots(slots, counts);
  int64_t rows = 0;
  for (int64_t e = 0; e < a.experts; ++e) rows += moe::rows_of(slots, counts, e, 1);
  moe::Permutation p = {scratch.take<int32_t>(a.experts + 1), scratch.take<int32_t>(rows),
                        scratch.take<int32_t>(rows), scratch.take<int32_t>(tokens * a.top_k), rows};
  permute(slots, counts, 1, p);
  return {first, tokens, rows, p.expert_offsets, p.row_token, p.row_slot, p.slot_row};
}

// The rows between the two GEMMs: bf16, f32 where x is, or codes and scales.
struct Hidden {
  uint8_t* data;
  int64_t stride;
  Dtype dtype;
  float* scale;  // of groups, or null
  int64_t groups;

  gemm::Operand operand(const Args& a, int64_t rows, Scratch& scratch) const {
    return make_operand(a.w2, {data, stride}, dtype, {scale, groups}, kGroup, rows, scratch);
  }
};

Hidden take_hidden(const Args& a, int64_t rows, Scratch& scratch) {
  const Dtype dtype = a.quantize ? Dtype::e4m3 : a.dtype;
  const int64_t groups = ceil_div(a.inter, kGroup), stride = spread_stride(a.inter);
  return {scratch.take<uint8_t>(rows * stride * size_of(dtype)), stride, dtype,
          a.quantize ? scratch.take<float>(rows * groups) : nullptr, groups};
}

// x as the operand of the first GEMM.
gemm::Operand first_operand(const Args& a, Scratch& scratch) {
  if (!a.quantize) return make_operand(a.w13, a.x, a.dtype, {nullptr, 0}, 0, a.tokens, scratch);
  const int64_t groups = ceil_div(a.hidden, kGroup);
  uint8_t* const codes = scratch.take<uint8_t>(a.tokens * a.hidden);
  float* const scales = scratch.take<float>(a.tokens * groups);
  parallel_rows(a.tokens, 4 * a.hidden, [&](int64_t first, int64_t last) {
    with_float_type(a.dtype, [&](auto type) {
      for (int64_t t = first; t < last; ++t)
        quantize_row<E4m3>(static_cast<const decltype(type)*>(a.x.data) + t * a.x.stride, a.hidden, kGroup,
                           kAmaxFloor, codes + t * a.hidden, scales, Dtype::f32, t * groups);
    });
  });
  return make_operand(a.w13, {codes, a.hidden}, Dtype::e4m3, {scales, groups}, kGroup, a.tokens, scratch);
}

// Columns [column, column + width) of the weights, which need not start where a vector does.
struct Columns {
  int64_t first_vector, vectors, skip;
  Columns(int64_t column, int64_t width)
      : first_vector(column / gemm::kLane),
        vectors(ceil_div(column + width, gemm::kLane) - first_vector),
        skip(column % gemm::kLane) {}
  int64_t stride() const { return vectors * gemm::kLane; }
};

// hidden[r, :] = silu(gate) * up for every routed row.
void first_gemm(const Args& a, const Routed& routed, const gemm::Operand& x, const Hidden& hidden) {
  Scratch scratch;
  const auto rows_of = [&](int64_t e) { return routed.rows_of(e); };
  const int64_t width = a.quantize ? kGroup : gemm::kPanel;  // a group's scale needs all of it
  const Items items = make_items(a.experts, ceil_div(a.inter, width), a.blocking.item_rows, scratch, rows_of);
  const int64_t sums = items.most_rows * (width + gemm::kLane), row = width;
  const int64_t per_worker = (2 * sums + row) * 4 + gemm::kScratchBytes;
  uint8_t* const workers = scratch.take<uint8_t>(per_worker * threads());

  parallel_for(
      items.count(),
      [&](int64_t i, int worker) {
        const Items::Item item = find_item(items, i, rows_of);
        const int64_t column = item.block * width, count = min(width, a.inter - column);
        const int64_t first_row = routed.expert_offsets[item.group] + item.first_row;
        const gemm::Weights w = a.w13.expert(item.group);
        gemm::Operand tokens = rows_from(x, routed.first_token);
        tokens.index = routed.row_token + first_row;

        float* const gate = reinterpret_cast<float*>(workers + worker * per_worker);
        float* const up = gate + sums;
        float* const activated = up + sums;
        uint8_t* const work = reinterpret_cast<uint8_t*>(activated + row);
        const Columns of_gate(column, count), of_up(a.inter + column, count);
        gemm::SK_ISA::multiply(w, tokens, item.rows, of_gate.first_vector, of_gate.vectors, gate, of_gate.stride(),
                               work, a.blocking);
        gemm::SK_ISA::multiply(w, tokens, item.rows, of_up.first_vector, of_up.vectors, up, of_up.stride(), work,
                               a.blocking);

        const F32 limit = splat(a.limit);
        for (int64_t r = 0; r < item.rows; ++r) {
          const float* const g = gate + r * of_gate.stride() + of_gate.skip;
          const float* const u = up + r * of_up.stride() + of_up.skip;
          const int64_t slot = routed.first_token * a.top_k + routed.row_slot[first_row + r];
          const F32 weight = splat(a.weight_on_hidden ? a.weights[slot] : 1.0f);
          const int64_t at = (first_row + r) * hidden.stride + column;
          const auto write = [&](auto* y) {
            map_row(g, y, count, [&](int64_t j, auto n) {
              return mul(gated_silu(load(g + j, n), load(u + j, n), limit), weight);
            });
          };
          if (a.quantize) {
            write(activated);
            quantize_row<E4m3>(activated, count, kGroup, kAmaxFloor, hidden.data + at, hidden.scale, Dtype::f32,
                               (first_row + r) * hidden.groups + item.block);
          } else if (hidden.dtype == Dtype::f32) {
            write(reinterpret_cast<float*>(hidden.data) + at);
          } else {
            write(reinterpret_cast<bf16*>(hidden.data) + at);
          }
        }
      },
      worth_threads(a.blocking, routed.rows * a.hidden * a.inter));
}

// out[t, :] = sum over j, in order, of weight * (w2[e] @ hidden). A worker does some columns of all experts' rows, so
// that a token's parts meet in its cache.
void second_gemm(const Args& a, const Routed& routed, const gemm::Operand& hidden) {
  Scratch scratch;
  const int64_t sums = routed.rows * kOutColumns, per_worker = round_up(sums * 4, 64) + gemm::kScratchBytes;
  uint8_t* const workers = scratch.take<uint8_t>(per_worker * threads());

  parallel_for(
      ceil_div(a.hidden, kOutColumns),
      [&](int64_t item, int worker) {
        const int64_t column = item * kOutColumns, count = min(kOutColumns, a.hidden - column);
        float* const y = reinterpret_cast<float*>(workers + worker * per_worker);
        uint8_t* const work = workers + worker * per_worker + round_up(sums * 4, 64);
        for (int64_t e = 0; e < a.experts; ++e)
          if (const int64_t rows = routed.rows_of(e), first = routed.expert_offsets[e]; rows > 0)
            gemm::SK_ISA::multiply(a.w2.expert(e), rows_from(hidden, first), rows, column / gemm::kLane,
                                   ceil_div(count, gemm::kLane), y + first * kOutColumns, kOutColumns, work,
                                   a.blocking);

        with_float_type(a.out_dtype, [&](auto type) {
          for (int64_t t = 0; t < routed.tokens; ++t) {
            const int64_t token = routed.first_token + t;
            auto* const out = static_cast<decltype(type)*>(a.out) + token * a.hidden + column;
            map_row(y, out, count, [&](int64_t j, auto n) {
              F32 acc = splat(0.0f);
              for (int64_t s = 0; s < a.top_k; ++s) {
                const int64_t row = routed.slot_row[t * a.top_k + s];
                if (row < 0) continue;
                const F32 part = load(y + row * kOutColumns + j, n);
                acc = a.weight_on_hidden ? add(acc, part) : fma(part, splat(a.weights[token * a.top_k + s]), acc);
              }
              return acc;
            });
          }
        });
      },
      worth_threads(a.blocking, routed.rows * a.hidden * a.inter));
}

}  // namespace

void run(const Args& a) {
  Scratch scratch;
  const gemm::Operand x = first_operand(a, scratch);
  // Tokens go in chunks, so that scratch is bounded; a chunk is large, because each reads all weights.
  const int64_t token_bytes = a.top_k * (a.inter * 4 + kOutColumns * 4 * threads());
  const int64_t chunks = max(1, ceil_div(a.tokens * token_bytes, kHiddenBytes + token_bytes));
  for (int64_t i = 0; i < chunks; ++i) {
    Scratch mine;
    const int64_t first = a.tokens * i / chunks, last = a.tokens * (i + 1) / chunks;
    const Routed routed = route(a, first, last - first, mine);
    const Hidden hidden = take_hidden(a, routed.rows, mine);
    first_gemm(a, routed, x, hidden);
    second_gemm(a, routed, hidden.operand(a, routed.rows, mine));
  }
}

}  // namespace sk::fused_moe::SK_ISA
