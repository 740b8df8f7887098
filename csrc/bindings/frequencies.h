// How fast channels are rotated: a size, a base and YaRN's four numbers.
#pragma once
#include "core/types.h"

namespace sk {

struct Yarn { double factor, original_positions, beta_fast, beta_slow; };

// frequency[i] for pair i of pairs; yarn may be null. Zeros up to a multiple of 16.
void rope_frequencies(double theta, int64_t pairs, const Yarn* yarn, float* frequency);

}  // namespace sk
