// mhc_post, then mhc_pre on what it wrote, while that is still in a cache
#pragma once
#include "core/variant.h"
#include "hyper/streams.h"

namespace sk::mhc_post_pre {

struct Args {
  hyper::Post post;
  hyper::Pre pre;  // of post.out
};

SK_CPU_VARIANTS

}  // namespace sk::mhc_post_pre
