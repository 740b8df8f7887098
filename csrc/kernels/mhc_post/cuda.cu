// A block does a token.
#include "hyper/mix.cuh"
#include "kernels/mhc_post/op.h"

namespace sk::mhc_post::cuda {
namespace {
using namespace sk::hyper::cuda;

template <class T, class Y>
__global__ void __launch_bounds__(kMixThreads) post(const Args a) {
  post_token<T, Y>(a, blockIdx.x);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_types(a,
             [&](auto t, auto y) { launch(post<decltype(t), decltype(y)>, a.in.tokens, kMixThreads, 0, stream, a); });
}

}  // namespace sk::mhc_post::cuda
