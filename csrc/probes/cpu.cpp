#include "core/parallel.h"
#include "probes/probes.h"
#include "simd/isa.h"

namespace sk::probes::SK_ISA {
using namespace sk::simd::SK_ISA;

// Hides a value's origin, or its use, from the optimiser.
template <class T>
static void opaque(T& x) {
  asm volatile("" : : "r"(&x) : "memory");
}

static void read_pass(const Args& a) {
  constexpr int64_t kStep = 4 * kLanes * 4, kChunk = 1 << 20;
  parallel_for(ceil_div(a.bytes, kChunk), [&](int64_t chunk, int) {
    const char* p = static_cast<const char*>(a.data) + chunk * kChunk;
    const int64_t n = min(kChunk, a.bytes - chunk * kChunk);
    I32 seen[4] = {splat_i(0), splat_i(0), splat_i(0), splat_i(0)};
    for (int64_t i = 0; i + kStep <= n; i += kStep)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) seen[u] = xor_(seen[u], load(reinterpret_cast<const int32_t*>(p + i) + u * kLanes));
    I32 all = xor_(xor_(seen[0], seen[1]), xor_(seen[2], seen[3]));
    opaque(all);
  });
}

// Independent sums: more than latency times instructions a cycle, and no more than there are registers.
constexpr int kChains = Isa::SK_ISA == Isa::avx2 ? kProductsARound / 2 : kProductsARound;

template <class Sum, class Body>
static void on_every_thread(int64_t rounds, const Sum& zero, const Body& shared) {
  parallel_for(threads(), [&](int64_t, int) {
    const Body body = shared;  // a copy that nothing else can reach, so that its operands stay in registers
    Sum sums[kChains];
    for (Sum& s : sums) s = zero;
    for (int64_t i = 0; i < rounds * (kProductsARound / kChains); ++i)
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = body(sums[c]);
    opaque(sums);
  });
}

void run(const Args& a) {
  uint32_t pair = 0x3c003c00;  // 2^-7 twice
  opaque(pair);
  if (a.kind == Kind::read) {
    read_pass(a);
  } else if (a.kind == Kind::fma) {
    const F32 x = even(splat_pair(&pair));
    on_every_thread(a.rounds, splat(0.0f), [x](F32 sum) { return fma(x, x, sum); });
  } else if (a.kind == Kind::dot) {
    const Bf16x2 x = splat_pair(&pair);
    on_every_thread(a.rounds, splat(0.0f), [x](F32 sum) { return dot(sum, x, x); });
  } else {
    const I32 x = splat_i(0x01010101);  // times the sum: products of constants would leave the loop
    on_every_thread(a.rounds, splat_i(1), [x](I32 sum) { return dot_bytes(sum, x, sum); });
  }
}

}  // namespace sk::probes::SK_ISA
