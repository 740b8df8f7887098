// out = sum of (sigmoid(mix[i] * scale + base[i]) + eps) * x[i], mix = (x fn^T) / rms(x)
#pragma once
#include "core/variant.h"
#include "hyper/streams.h"

namespace sk::mhc_head {

struct Args {
  hyper::Streams in;
  hyper::Mixer mixer;
  void* out;  // [tokens, dim] of in.dtype
};

SK_CPU_VARIANTS

}  // namespace sk::mhc_head
