// How experts are scored, chosen and weighed: the contract of the core that every op which routes tokens runs.
#pragma once
#include "core/types.h"

namespace sk::moe {

enum class Scoring : int { sigmoid, softmax, sqrtsoftplus };  // in the order of the option's choices

inline constexpr int64_t kMaxExperts = 1024, kMaxTopK = 32;

struct Logits {
  Rows<const void> rows;  // [tokens, experts]
  Dtype dtype;            // f32 or bf16
  int64_t experts;

  Logits from(int64_t token) const {
    const auto* data = static_cast<const uint8_t*>(rows.data) + token * rows.stride * size_of(dtype);
    return {{data, rows.stride}, dtype, experts};
  }
};

struct Weighing {
  Scoring scoring;
  bool renormalize;  // divide by the sum of the chosen
  float scale;       // last of all
};

struct Selection {
  const float* bias;  // [experts], added for selection only; or null
  int64_t top_k;
  int64_t n_group, topk_group;  // equal: no grouping
};

}  // namespace sk::moe

// What every instruction set offers (csrc/moe/cpu.cpp).
#define SK_MOE_DECLARE(isa)                                                                                   \
  namespace sk::moe::isa {                                                                                    \
  /* ids and weights [rows, top_k] of the experts that the selection makes of the first rows. */              \
  void select(const Logits& logits, int64_t rows, const Selection& selection, const Weighing& weighing,       \
              float* weights, int32_t* ids);                                                                  \
  /* weights [rows, top_k] of experts that are chosen already. */                                             \
  void weigh(const Logits& logits, int64_t rows, const int32_t* ids, int64_t top_k, const Weighing& weighing, \
             float* weights);                                                                                 \
  }

SK_MOE_DECLARE(scalar)
#if defined(__x86_64__)
SK_MOE_DECLARE(avx2)
SK_MOE_DECLARE(avx512)
SK_MOE_DECLARE(avx512bf16)
#endif
