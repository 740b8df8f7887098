// What the routers read alike, on CPUs and devices.
#pragma once
#include <cmath>

#include "bindings/call.h"
#include "moe/routing.h"

namespace sk {

inline moe::Weighing weighing(const Call& c, moe::Scoring scoring, int renormalize, int scale) {
  if (!std::isfinite(c.real(scale))) fail("scale is ", c.real(scale), ", expected a finite number");
  return {scoring, c.flag(renormalize), c.real(scale)};
}

inline moe::Logits logits_of(const TensorView& t) { return {t.as_rows<const void>(), t.dtype, t.last()}; }

}  // namespace sk
