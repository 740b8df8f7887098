#include "core/arena.h"
#include "core/parallel.h"
#include "kernels/router_gather/gate.h"
#include "kernels/router_gather/op.h"
#include "moe/rows.h"
#include "simd/small_floats.h"

namespace sk::router_gather::gate::SK_ISA {
using namespace sk::router_gather::SK_ISA;

template <class T>
static Rows<const T> rows_from(Rows<const void> rows, int64_t first) {
  return {static_cast<const T*>(rows.data) + first * rows.stride, rows.stride};
}

// Some tokens times some experts, in blocks.
static void multiply(const Args& a, int64_t first_token, int64_t tokens, int64_t first_expert, int64_t experts,
                     float* logits, int64_t stride) {
  Scratch scratch;
  float* const sums = scratch.take<float>(kBlockSums);
  const uint32_t rounding = set_gemm_rounding();
  with_float_type(a.dtype, [&](auto x_type) {
    with_float_type(a.router_dtype, [&](auto w_type) {
      for (int64_t t = 0; t < tokens; t += kBlockTokens)
        for (int64_t e = 0; e < experts; e += kBlockExperts)
          multiply_block(rows_from<decltype(x_type)>(a.x, first_token + t), min(kBlockTokens, tokens - t),
                         rows_from<decltype(w_type)>(a.router, first_expert + e), min(kBlockExperts, experts - e),
                         a.dim, sums, logits + t * stride + first_expert + e, stride);
    });
  });
  set_rounding(rounding);
}

static void route(const Args& a, int64_t first, int64_t tokens, const float* logits) {
  const moe::Logits z = {{logits, a.experts}, Dtype::f32, a.experts};
  const int64_t k = a.selection.top_k, slot = first * k;
  if (a.chosen != nullptr)
    moe::SK_ISA::weigh(z, tokens, a.chosen + slot, k, a.weighing, a.weights + slot);
  else
    moe::SK_ISA::select(z, tokens, a.selection, a.weighing, a.weights + slot, a.ids + slot);
}

void run(const Args& a) {
  constexpr int64_t kWorthThreads = 1 << 20;  // products
  const int64_t blocks = ceil_div(a.tokens, kBlockTokens);
  if (blocks >= 2 * threads()) {  // a block's logits never leave the cache
    parallel_for(blocks, [&](int64_t block, int) {
      const int64_t first = block * kBlockTokens, tokens = min(kBlockTokens, a.tokens - first);
      Scratch scratch;
      float* const logits = scratch.take<float>(kBlockTokens * a.experts);
      multiply(a, first, tokens, 0, a.experts, logits, a.experts);
      route(a, first, tokens, logits);
    });
    return;
  }
  Scratch scratch;  // threads share the experts
  float* const logits = scratch.take<float>(a.tokens * a.experts);
  const int64_t width = min(kBlockExperts, round_up(ceil_div(a.experts, 4 * threads()), kTileExperts));
  parallel_for(
      ceil_div(a.experts, width),
      [&](int64_t i, int) {
        const int64_t first = i * width;
        multiply(a, 0, a.tokens, first, min(width, a.experts - first), logits, a.experts);
      },
      a.tokens * a.experts * a.dim >= kWorthThreads);
  parallel_rows(a.tokens, 2 * a.experts * size_of(Dtype::f32),
                [&](int64_t first, int64_t last) { route(a, first, last - first, logits + first * a.experts); });
}

}  // namespace sk::router_gather::gate::SK_ISA

namespace sk::router_gather::place::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr float kAmaxFloor = 1e-4f;  // that of quantize_fp8

// The rows of one token, written as soon as some of their bytes are there: the stores hide behind what makes the
// next ones.
struct Copies {
  uint8_t* rows;
  int64_t bytes;         // of a row
  const int32_t* to;     // [count] rows, -1: none
  int64_t count;
  bool stream;

  void write(const uint8_t* from, int64_t first, int64_t last) const {
    for (int64_t j = 0; j < count; ++j)
      if (to[j] >= 0) moe::SK_ISA::copy(rows + to[j] * bytes + first, from + first, last - first, stream);
  }
};

void run(const Args& a) {
  const int64_t size = a.quantize ? 1 : size_of(a.dtype), bytes = a.dim * size;
  const int64_t groups = ceil_div(a.dim, a.group), scale_bytes = groups * size_of(a.scale_dtype);
  const bool stream = moe::SK_ISA::worth_streaming(a.rows, a.row_count, bytes);
  parallel_rows(a.tokens, a.dim * size_of(a.dtype) + a.top_k * bytes, [&](int64_t first, int64_t last) {
    Scratch scratch;
    uint8_t* const codes = scratch.take<uint8_t>(a.quantize ? bytes : 0);
    uint8_t* const scales = scratch.take<uint8_t>(a.quantize ? scale_bytes : 0);
    for (int64_t t = first; t < last; ++t) {
      const Copies copies = {a.rows, bytes, a.slot_row + t * a.top_k, a.top_k, stream};
      const auto* x = static_cast<const uint8_t*>(a.x.data) + t * a.x.stride * size_of(a.dtype);
      if (!a.quantize) {
        copies.write(x, 0, bytes);
        continue;
      }
      constexpr int64_t kPiece = 512;  // few enough stores to wait in the processor's buffers
      int64_t written = 0;
      const auto write_until = [&](int64_t end) {
        if (end < a.dim) end = end / kPiece * kPiece;
        if (end > written) copies.write(codes, written, end);
        written = max(written, end);
      };
      with_float_type(a.dtype, [&](auto type) {
        quantize_row<E4m3>(reinterpret_cast<const decltype(type)*>(x), a.dim, a.group, kAmaxFloor, codes, scales,
                           a.scale_dtype, 0, write_until);
      });
      const Copies scale_copies = {a.scales, scale_bytes, copies.to, a.top_k, false};
      scale_copies.write(scales, 0, scale_bytes);
    }
    if (stream) finish_lines();
  });
  if (a.row_count == a.tokens * a.top_k) return;  // no slot is dropped: there is no padding
  parallel_rows(a.row_count, bytes, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      if (a.row_token[r] >= 0) continue;
      __builtin_memset(a.rows + r * bytes, 0, static_cast<__SIZE_TYPE__>(bytes));
      if (a.quantize) __builtin_memset(a.scales + r * scale_bytes, 0, static_cast<__SIZE_TYPE__>(scale_bytes));
    }
  });
}

}  // namespace sk::router_gather::place::SK_ISA
