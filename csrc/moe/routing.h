// How experts are scored, chosen and weighed: what every op that routes tokens takes.
#pragma once
#include "core/types.h"

namespace sk::moe {

enum class Scoring : int { sigmoid, softmax, sqrtsoftplus };  // in the order of the option's choices

inline constexpr int64_t kMaxExperts = 1024, kMaxTopK = 32;

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
