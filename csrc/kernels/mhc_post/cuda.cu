// A block does a token.
#include "hyper/mix.cuh"
#include "kernels/mhc_post/op.h"

namespace sk::mhc_post::cuda {
namespace {
using namespace sk::hyper::cuda;

template <class T>
__global__ void __launch_bounds__(kMixThreads) post(const Args a) {
  post_token<T>(a, blockIdx.x);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.in.dtype,
                  [&](auto type) { launch(post<decltype(type)>, a.in.tokens, kMixThreads, 0, stream, a); });
}

}  // namespace sk::mhc_post::cuda
