// mix = (x fn^T) / rms(x); layer_in = sum of pre(mix)[i] * x[i]; post and comb from mix. As in hyper/streams.h
#pragma once
#include "core/variant.h"
#include "hyper/streams.h"

namespace sk::mhc_pre {

using Args = hyper::Pre;

SK_CPU_VARIANTS

}  // namespace sk::mhc_pre
