// A block does a token: what it has written it reads again.
#include "hyper/mix.cuh"
#include "kernels/mhc_post_pre/op.h"

namespace sk::mhc_post_pre::cuda {
namespace {
using namespace sk::hyper::cuda;

template <class T>
__global__ void __launch_bounds__(kMixThreads) post_pre(const Args a) {
  __shared__ float mix[kMostOutputs];
  post_token<T>(a.post, blockIdx.x);
  __syncthreads();
  pre_token<T>(a.pre, blockIdx.x, mix);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.post.in.dtype,
                  [&](auto type) { launch(post_pre<decltype(type)>, a.post.in.tokens, kMixThreads, 0, stream, a); });
}

}  // namespace sk::mhc_post_pre::cuda
