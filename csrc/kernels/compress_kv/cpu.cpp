#include "core/parallel.h"
#include "kernels/compress_kv/op.h"
#include "norm/rms.h"

namespace sk::compress_kv::SK_ISA {
using namespace sk::simd::SK_ISA;

template <class Step>
SK_INLINE void each_vector(int64_t size, const Step& step) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) step(i, All{});
  if (i < size) step(i, size - i);
}

// body(kv, gate, ape) for the slots of an entry in ascending order; a channel's values lie at the same place in each.
template <class K, class G, class Body>
SK_INLINE void each_slot(const Args& a, int64_t window, const Body& body) {
  const int64_t width = a.series * a.dim;
  for (int64_t slot = 0; slot < a.series * a.ratio; ++slot) {
    const int64_t row = window * a.ratio + slot, half = slot / a.ratio * a.dim;
    const float* ape = a.ape.data + slot % a.ratio * a.ape.stride + half;
    if (row >= a.before) {
      const int64_t token = row - a.before;
      body(static_cast<const K*>(a.kv.data) + token * a.kv.stride + half,
           static_cast<const G*>(a.gate.data) + token * a.gate.stride + half, ape);
    } else if (a.state != nullptr) {
      const float* kept = a.state + row * 2 * width + half;
      body(kept, kept + width, ape);
    }
  }
}

// Row after row, as they lie in memory: the largest scores first, then weights and what they weigh.
template <class K, class G>
static void pool(const Args& a, int64_t window, float* top, float* total, float* weighted) {
  each_vector(a.dim, [&](int64_t i, auto) {
    store(top + i, splat(-__builtin_inff()));
    store(total + i, splat(0.0f));
    store(weighted + i, splat(0.0f));
  });
  each_slot<K, G>(a, window, [&](const auto*, const auto* gate, const float* ape) {
    each_vector(a.dim, [&](int64_t i, auto lanes) {
      store(top + i, max(load(top + i), add(load(gate + i, lanes), load(ape + i, lanes))));
    });
  });
  each_slot<K, G>(a, window, [&](const auto* kv, const auto* gate, const float* ape) {
    each_vector(a.dim, [&](int64_t i, auto lanes) {
      const F32 p = exp(sub(add(load(gate + i, lanes), load(ape + i, lanes)), load(top + i)));
      store(total + i, add(load(total + i), p));
      store(weighted + i, fma(p, load(kv + i, lanes), load(weighted + i)));
    });
  });
}

template <class K, class G>
static void keep_row(const Args& a, int64_t r) {
  const int64_t width = a.series * a.dim, row = a.windows * a.ratio + r;
  float* to = a.state_out + r * 2 * width;
  const auto copy = [&](const auto* kv, const auto* gate) {
    each_vector(width, [&](int64_t i, auto lanes) {
      store(to + i, one_nan(load(kv + i, lanes)), lanes);
      store(to + width + i, one_nan(load(gate + i, lanes)), lanes);
    });
  };
  if (row >= a.before) {
    const int64_t token = row - a.before;
    copy(static_cast<const K*>(a.kv.data) + token * a.kv.stride,
         static_cast<const G*>(a.gate.data) + token * a.gate.stride);
  } else if (a.state != nullptr) {
    copy(a.state + row * 2 * width, a.state + row * 2 * width + width);
  } else {  // weighs nothing
    each_vector(width, [&](int64_t i, auto lanes) {
      store(to + i, splat(0.0f), lanes);
      store(to + width + i, splat(-__builtin_inff()), lanes);
    });
  }
}

template <class K, class G, class W>
static void compress(const Args& a) {
  const int64_t width = a.series * a.dim, padded = round_up(a.dim, kLanes);
  const int64_t row_bytes = width * (size_of(a.kv_dtype) + size_of(a.gate_dtype));
  parallel_rows(a.windows, 2 * a.ratio * row_bytes, [&](int64_t first, int64_t last, int worker) {
    float* top = a.scratch + worker * scratch_floats(a.dim);
    float *total = top + padded, *weighted = total + padded;
    for (int64_t w = first; w < last; ++w) {
      pool<K, G>(a, w, top, total, weighted);
      K* entry = static_cast<K*>(a.entries) + w * a.dim;
      map_row(weighted, entry, a.dim, [&](int64_t i, auto) { return div(load(weighted + i), load(total + i)); });
      norm::SK_ISA::normalise(entry, a.dim, a.eps, static_cast<const W*>(a.weight), entry);
    }
  });
  parallel_rows(a.before + a.tokens - a.windows * a.ratio, row_bytes + 8 * width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) keep_row<K, G>(a, r);
  });
}

void run(const Args& a) {
  with_float_type(a.kv_dtype, [&](auto k) {
    with_float_type(a.gate_dtype, [&](auto g) {
      with_float_type(a.weight_dtype, [&](auto w) { compress<decltype(k), decltype(g), decltype(w)>(a); });
    });
  });
}

}  // namespace sk::compress_kv::SK_ISA
