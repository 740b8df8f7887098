// Records to values and back by a warp, as csrc/kv/records.h has them: the same bits. No address is aligned.
#pragma once
#include "cuda/codes.cuh"
#include "cuda/unaligned.cuh"
#include "kv/insert.h"

namespace sk::kv::cuda {
using namespace sk::cuda;

// For kernels to take: of plain records there is none.
inline Layout layout_or_none(Format f) { return f == Format::bf16 ? Layout{} : layout_of(f); }

// The scale of a tile, as a factor.
__device__ inline float factor_of(const Layout& f, const uint8_t* scales, int64_t tile) {
  if (f.scale_dtype == Dtype::e8m0) return __uint_as_float(uint32_t{scales[tile]} << 23);
  return load_word(scales + 4 * tile);
}

// Value i of a record, as the float that is rounded once; what was kept as bf16 comes as it is.
template <class T>
__device__ inline T value_of(const Layout& f, const Record<const uint8_t>& r, int64_t i) {
  if (i >= f.coded) {
    const bf16 kept = {load_half(r.data + f.rest_at() + 2 * (i - f.coded))};
    if constexpr (sizeof(T) == sizeof(bf16))
      return kept;
    else
      return narrow<T>(widen(kept));
  }
  const float code = f.fp4 ? e2m1_value(r.data[i / 2] >> i % 2 * 4) : e4m3_value(r.data[i]);
  return narrow<T>(code * factor_of(f, r.scales, i / f.tile));
}

// Rows of plain records: copied to the bit where the dtype is the same.
template <class To, class From>
__device__ inline To convert(From x) {
  if constexpr (sizeof(From) == sizeof(To))
    return x;
  else
    return narrow<To>(widen(x));
}

__device__ inline void copy_bytes(const uint8_t* from, uint8_t* to, int64_t n) {
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) to[i] = from[i];
}

// How scales come from the largest magnitude of a tile.
struct Scaling {
  float floor;
  bool pow2;
};

template <class Code, class At>
__device__ inline void encode_tiles(Code code, const Layout& f, Scaling how, const Record<uint8_t>& r, const At& at) {
  const int lane = threadIdx.x % kWarp;
  const bool power = f.scale_dtype == Dtype::e8m0;
  for (int64_t t = 0; t < f.tiles(); ++t) {
    const int64_t first = t * f.tile;
    float most = 0.0f;
    for (int64_t k = lane; k < f.tile; k += kWarp) most = fmaxf(most, fabsf(at(first + k)));
    const Scale s = scale_for(largest_of<kWarp>(most), how.floor, Code::kLargest, how.pow2 || power);
    const uint32_t bits = __float_as_uint(s.scale);
    if (power ? lane == 0 : lane < 4)
      r.scales[power ? t : 4 * t + lane] = static_cast<uint8_t>(power ? bits >> 23 : bits >> 8 * lane);
    if constexpr (Code::kBits == 8)
      for (int64_t k = first + lane; k < first + f.tile; k += kWarp)
        r.data[k] = static_cast<uint8_t>(code_of(code, at(k), s.inverse));
    else
      for (int64_t k = first + 2 * lane; k < first + f.tile; k += 2 * kWarp)
        r.data[k / 2] =
            static_cast<uint8_t>(code_of(code, at(k), s.inverse) | code_of(code, at(k + 1), s.inverse) << 4);
  }
  for (int64_t i = f.tiles() * size_of(f.scale_dtype) + lane; i < f.scale_bytes; i += kWarp) r.scales[i] = 0;
}

// at(i) are bf16 values.
template <class At>
__device__ inline void encode_record(const Layout& f, Scaling how, const Record<uint8_t>& r, const At& at) {
  const auto value = [&](int64_t i) { return widen(at(i)); };
  f.fp4 ? encode_tiles(E2m1{}, f, how, r, value) : encode_tiles(E4m3{}, f, how, r, value);
  for (int64_t i = threadIdx.x % kWarp; i < f.rest(); i += kWarp) {
    const bf16 kept = at(f.coded + i);
    uint8_t* const to = r.data + f.rest_at() + 2 * i;
    to[0] = static_cast<uint8_t>(kept.bits);
    to[1] = static_cast<uint8_t>(kept.bits >> 8);
  }
}

// Whether the warp's token is the last of those with its slot, one of the pool.
__device__ inline bool stays(const Slot* slots, int64_t tokens, int64_t token, int64_t records) {
  const Slot slot = slots[token];
  if (slot < 0 || slot >= records) return false;
  bool later = false;
  for (int64_t t = token + 1 + threadIdx.x % kWarp; t < tokens; t += kWarp) later = later || slots[t] == slot;
  return !__any_sync(0xffffffffu, later);
}

// A row of values becomes a record.
template <class T>
__device__ inline void insert(const Target& to, const Layout& f, int64_t slot, const T* x, int64_t dim) {
  if (to.format != Format::bf16)
    return encode_record(f, {to.floor, to.pow2}, record_at(f, to.pool, slot),
                         [&](int64_t i) { return convert<bf16>(x[i]); });
  uint8_t* const row = to.pool.data + slot * to.pool.page_stride;
  for (int64_t i = threadIdx.x % kWarp; i < dim; i += kWarp)
    if (to.plain_dtype == Dtype::f32)
      reinterpret_cast<float*>(row)[i] = convert<float>(x[i]);
    else
      reinterpret_cast<bf16*>(row)[i] = convert<bf16>(x[i]);
}

}  // namespace sk::kv::cuda
