// out[t, k] = post[t, k] * y[t] + sum over i of comb[t, i, k] * x[t, i]
#pragma once
#include "core/variant.h"
#include "hyper/streams.h"

namespace sk::mhc_post {

using Args = hyper::Post;

SK_CPU_VARIANTS

}  // namespace sk::mhc_post
