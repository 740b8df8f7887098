// What the machine can do at best, for bench/roofline.py: bytes read a second, products a second. Not ops: they
// compute nothing.
#pragma once
#include "core/variant.h"

namespace sk::probes {

enum class Kind : int { read, fma, dot, bytes };

struct Args {
  Kind kind;
  const void* data;  // read: goes over these bytes once
  int64_t bytes;
  int64_t rounds;    // the others: rounds of kProductsARound vector products on every thread
};

inline constexpr int kProductsARound = 12;

SK_CPU_VARIANTS

}  // namespace sk::probes
