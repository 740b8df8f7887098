// A block does a token.
#include "hyper/mix.cuh"
#include "kernels/mhc_pre/op.h"

namespace sk::mhc_pre::cuda {
namespace {
using namespace sk::hyper::cuda;

template <class T>
__global__ void __launch_bounds__(kMixThreads) pre(const Args a) {
  __shared__ float mix[kMostOutputs];
  pre_token<T>(a, blockIdx.x, mix);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.in.dtype,
                  [&](auto type) { launch(pre<decltype(type)>, a.in.tokens, kMixThreads, 0, stream, a); });
}

}  // namespace sk::mhc_pre::cuda
