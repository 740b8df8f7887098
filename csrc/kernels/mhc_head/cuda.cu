// A block does a token.
#include "hyper/mix.cuh"
#include "kernels/mhc_head/op.h"

namespace sk::mhc_head::cuda {
namespace {
using namespace sk::hyper::cuda;

template <class T>
__global__ void __launch_bounds__(kMixThreads) head(const Args a) {
  __shared__ float mix[kMostOutputs];
  mix_token<T>(a.in, a.mixer, blockIdx.x, mix);
  if (threadIdx.x < a.in.n)
    mix[threadIdx.x] = narrow<float>(gate(a.mixer, 0, threadIdx.x, mix[threadIdx.x]) + a.mixer.eps);
  __syncthreads();
  collapse(a.in, blockIdx.x, mix, static_cast<T*>(a.out) + int64_t{blockIdx.x} * a.in.dim);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.in.dtype,
                  [&](auto type) { launch(head<decltype(type)>, a.in.tokens, kMixThreads, 0, stream, a); });
}

}  // namespace sk::mhc_head::cuda
