// entries[w] = rms_norm of the sum over slots of softmax(gate + ape)[slot] * kv[slot], channel by channel
#pragma once
#include "core/variant.h"

namespace sk::compress_kv {

struct Args {
  // Tokens one after the other: first the rows of the state, [kv | gate], then the new ones. Without a state its
  // `before` rows are as if they were not there.
  const float* state;              // [before, 2 * series * dim] or null
  Rows<const void> kv, gate;       // [tokens, series * dim]
  Dtype kv_dtype, gate_dtype;
  Rows<const float> ape;           // [ratio, series * dim]
  const void* weight;              // [dim]
  Dtype weight_dtype;
  void* entries;                   // [windows, dim] of kv_dtype
  float* state_out;                // [before + tokens - windows * ratio, 2 * series * dim]
  float* scratch;                  // threads() * scratch_floats(dim)
  // series 2: a window's entry takes the first half of the channels from the window before it, the second from itself
  int64_t before, tokens, windows, ratio, series, dim;
  float eps;
};

constexpr int64_t scratch_floats(int64_t dim) { return 3 * round_up(dim, 16); }

SK_CPU_VARIANTS

}  // namespace sk::compress_kv
