#include "core/parallel.h"
#include "hyper/mix.h"
#include "kernels/mhc_head/op.h"

namespace sk::mhc_head::SK_ISA {
using namespace sk::hyper::SK_ISA;

void run(const Args& a) {
  with_float_type(a.in.dtype, [&](auto type) {
    using T = decltype(type);
    mix_tokens<T>(a.in, a.mixer, Ready{}, [&](const Tile<T>& tile, int64_t first, F32* mix) {
      gates(a.mixer, 0, 0, a.in.n, mix);
      for (int64_t i = 0; i < a.in.n; ++i) mix[i] = add(mix[i], splat(a.mixer.eps));
      collapse(tile, mix, static_cast<T*>(a.out) + first * a.in.dim);
    });
  });
}

}  // namespace sk::mhc_head::SK_ISA
