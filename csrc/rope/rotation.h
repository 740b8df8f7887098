// Which channels of a row are rotated, and how fast.
#pragma once
#include "core/types.h"

namespace sk::rope {

struct Rotation {
  const float* frequency;  // [pairs], radians a position, padded with zeros to a multiple of 16
  int64_t offset, pairs;   // channels offset ... offset + 2 * pairs
  bool half;               // pairs (i, i + pairs) instead of (2 i, 2 i + 1)
  bool inverse;
};

// Scratch of one thread: cosines, then sines.
constexpr int64_t table_floats(int64_t pairs) { return 2 * round_up(pairs, 16); }

}  // namespace sk::rope
