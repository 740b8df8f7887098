// What single instructions compute. Registers are unsigned integers of their width; as<T> reads one as a T.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core.h"

namespace model {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using b8 = uint8_t;
using b16 = uint16_t;
using b32 = uint32_t;
using b64 = uint64_t;
using f32 = float;
using f64 = double;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct f16x2 { u32 bits; };
struct bf16x2 { u32 bits; };
struct b128 { u64 low, high; };

template <class T, class R>
T as(R r) {
  if constexpr (std::is_same_v<T, f32>) {
    return __builtin_bit_cast(f32, static_cast<u32>(r));
  } else if constexpr (std::is_same_v<T, f64>) {
    return __builtin_bit_cast(f64, static_cast<u64>(r));
  } else if constexpr (std::is_class_v<T>) {
    return T{static_cast<decltype(T::bits)>(r)};
  } else {
    return static_cast<T>(r);
  }
}
// NaN comes out of arithmetic as one and the same.
inline u32 bits(f32 x) { return x != x ? 0x7fffffffu : __builtin_bit_cast(u32, x); }
inline u64 bits(f64 x) { return x != x ? 0x7fffffffffffffffull : __builtin_bit_cast(u64, x); }
inline u16 bits(f16 x) { return x.bits; }
inline u16 bits(bf16 x) { return x.bits; }
inline u32 bits(f16x2 x) { return x.bits; }
inline u32 bits(bf16x2 x) { return x.bits; }
template <class T>
  requires std::is_integral_v<T>
T bits(T x) {
  return x;
}
template <class R, class T>
void set(R& r, T value) {
  r = static_cast<R>(bits(value));
}

// --- small floats
inline f32 widen(bf16 x) { return as<f32>(u32{x.bits} << 16); }
inline f32 widen(f16 x) {
  const u32 sign = (x.bits & 0x8000u) << 16, e = x.bits >> 10 & 31, m = x.bits & 0x3ff;
  if (e == 31) return as<f32>(sign | 0x7f800000u | m << 13);
  const f32 magnitude = e == 0 ? static_cast<f32>(m) * 0x1p-24f : as<f32>((e + 112) << 23 | m << 13);
  return as<f32>(sign | __builtin_bit_cast(u32, magnitude));
}
inline f32 widen(f32 x) { return x; }
enum class Round { nearest, zero, down, up };
template <Round kHow = Round::nearest>
bf16 to_bf16(f32 x) {
  const u32 u = __builtin_bit_cast(u32, x);
  if (x != x) return {0x7fff};
  if constexpr (kHow == Round::zero) return {static_cast<u16>(u >> 16)};
  return {static_cast<u16>((u + (u >> 16 & 1) + 0x7fff) >> 16)};
}
// Rounds |x| to an integer number of steps, to nearest even.
inline f64 to_steps(f64 x, f64 step) { return std::nearbyint(x / step) * step; }
inline f16 to_f16(f32 x) {
  if (x != x) return {0x7fff};
  const u16 sign = __builtin_bit_cast(u32, x) >> 16 & 0x8000;
  const f64 a = std::fabs(x);
  if (a >= 65520) return {static_cast<u16>(sign | 0x7c00)};
  int e = a == 0 ? -14 : std::ilogb(a);
  if (e < -14) e = -14;
  f64 y = to_steps(a, std::ldexp(1.0, e - 10));
  const auto m = static_cast<u32>(y / std::ldexp(1.0, e - 10));  // up to 2048: a carry goes into the exponent
  return {static_cast<u16>(sign | (static_cast<u32>(e + 14) * 1024 + m))};
}
// e4m3 and e5m2 as cvt.rn.satfinite makes them.
inline u8 to_fp8(f32 x, int mantissa, int bias, f64 largest, u8 nan) {
  if (x != x) return nan;
  const u8 sign = std::signbit(x) ? 0x80 : 0;
  f64 a = std::fabs(static_cast<f64>(x));
  int e = a == 0 ? 1 - bias : std::max(1 - bias, std::ilogb(std::min(a, 1e300)));
  a = to_steps(a, std::ldexp(1.0, e - mantissa));
  if (a >= largest) a = largest;
  e = a == 0 ? 1 - bias : std::max(1 - bias, std::ilogb(a));
  const auto m = static_cast<u32>(a / std::ldexp(1.0, e - mantissa));
  return static_cast<u8>(sign | (static_cast<u32>(e + bias - 1) * (1u << mantissa) + m));
}
inline u8 to_e4m3(f32 x) { return to_fp8(x, 3, 7, 448, 0x7f); }
inline u8 to_e5m2(f32 x) { return to_fp8(x, 2, 15, 57344, 0x7f); }
inline f32 from_fp8(u8 c, int mantissa, int bias) {
  const int e = c >> mantissa & (127 >> mantissa), m = c & ((1 << mantissa) - 1);
  const f64 a = e == 0 ? std::ldexp(m, 1 - bias - mantissa) : std::ldexp((1 << mantissa) + m, e - bias - mantissa);
  return static_cast<f32>(c & 0x80 ? -a : a);
}
inline f32 from_e4m3(u8 c) { return (c & 0x7f) == 0x7f ? as<f32>(0x7fffffffu) : from_fp8(c, 3, 7); }
inline f32 from_e5m2(u8 c) {
  if ((c & 0x7f) > 0x7c) return as<f32>(0x7fffffffu);
  return (c & 0x7f) == 0x7c ? (c & 0x80 ? -INFINITY : INFINITY) : from_fp8(c, 2, 15);
}
inline f16x2 pair(f16 low, f16 high) { return {low.bits | u32{high.bits} << 16}; }
inline bf16x2 pair(bf16 low, bf16 high) { return {low.bits | u32{high.bits} << 16}; }
template <class P>
using Half = std::conditional_t<std::is_same_v<P, f16x2>, f16, bf16>;
template <class P>
Half<P> low(P p) {
  return {static_cast<u16>(p.bits)};
}
template <class P>
Half<P> high(P p) {
  return {static_cast<u16>(p.bits >> 16)};
}
template <class T>
T narrow(f32 x) {
  if constexpr (std::is_same_v<T, f16>) return to_f16(x);
  if constexpr (std::is_same_v<T, bf16>) return to_bf16(x);
  if constexpr (std::is_same_v<T, f32>) return x;
}
// To float towards zero, but with the last bit set where something was lost: rounding that again is rounding once.
inline f32 to_odd(f64 x) {
  f32 r = static_cast<f32>(x);
  if (static_cast<f64>(r) == x || !std::isfinite(r)) return r;
  if (std::fabs(static_cast<f64>(r)) > std::fabs(x)) r = std::nextafterf(r, 0.0f);
  return as<f32>(__builtin_bit_cast(u32, r) | 1u);
}
// An operation of halves, and of pairs of them, rounded once.
template <class T, class F>
T by_floats(F f, auto... x) {
  if constexpr (std::is_same_v<T, f16x2> || std::is_same_v<T, bf16x2>)
    return pair(by_floats<Half<T>>(f, low(x)...), by_floats<Half<T>>(f, high(x)...));
  else
    return narrow<T>(to_odd(f(static_cast<f64>(widen(x))...)));
}
template <class T>
constexpr bool kIsSmall = std::is_class_v<T>;

// --- arithmetic
template <class T> T add(T a, T b) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x, f64 y) { return x + y; }, a, b);
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(static_cast<u64>(a) + static_cast<u64>(b));
  else
    return a + b;
}
template <class T> T sub(T a, T b) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x, f64 y) { return x - y; }, a, b);
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(static_cast<u64>(a) - static_cast<u64>(b));
  else
    return a - b;
}
template <class T> T mul(T a, T b) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x, f64 y) { return x * y; }, a, b);
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
  else
    return a * b;
}
template <class T> T mad(T a, T b, T c) { return add(mul(a, b), c); }
template <class T> T fma(T a, T b, T c) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x, f64 y, f64 z) { return x * y + z; }, a, b, c);
  else
    return std::fma(a, b, c);
}
template <class T> T fma_relu(T a, T b, T c) {
  return by_floats<T>([](f64 x, f64 y, f64 z) { return std::fmax(x * y + z, 0.0); }, a, b, c);
}
template <class W, class T> W mul_wide(T a, T b) { return static_cast<W>(a) * static_cast<W>(b); }
template <class W, class T> W mad_wide(T a, T b, W c) { return add<W>(mul_wide<W>(a, b), c); }
template <class T> T mul_hi(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(T)));
}
template <class T> T mad_hi(T a, T b, T c) { return add(mul_hi(a, b), c); }
template <class T> T mul24(T a, T b) {
  const auto low24 = [](T x) { return static_cast<T>(static_cast<T>(x << 8) >> 8); };
  return mul<T>(low24(a), low24(b));
}
template <class T> T div(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) return static_cast<T>(-1);
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return sub<T>(0, a);
  }
  return a / b;
}
template <class T> T rem(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return a % b;
}
template <class T> T neg(T a) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x) { return -x; }, a);
  else if constexpr (std::is_integral_v<T>)
    return sub<T>(0, a);
  else
    return -a;
}
template <class T> T abs(T a) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x) { return std::fabs(x); }, a);
  else if constexpr (std::is_integral_v<T>)
    return a < 0 ? sub<T>(0, a) : a;
  else
    return std::fabs(a);
}
// Of a number and NaN the number; -0 is less than 0.
template <bool kNan, class T> T smaller(T a, T b) {
  if (a != a || b != b) return kNan ? std::numeric_limits<T>::quiet_NaN() : a != a ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <bool kNan, class T> T larger(T a, T b) {
  if (a != a || b != b) return kNan ? std::numeric_limits<T>::quiet_NaN() : a != a ? b : a;
  return a > b || (a == b && std::signbit(b)) ? a : b;
}
template <class T, bool kNan = false> T min(T a, T b) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x, f64 y) { return smaller<kNan>(x, y); }, a, b);
  else if constexpr (std::is_integral_v<T>)
    return b < a ? b : a;
  else
    return smaller<kNan>(a, b);
}
template <class T, bool kNan = false> T max(T a, T b) {
  if constexpr (kIsSmall<T>)
    return by_floats<T>([](f64 x, f64 y) { return larger<kNan>(x, y); }, a, b);
  else if constexpr (std::is_integral_v<T>)
    return a < b ? b : a;
  else
    return larger<kNan>(a, b);
}
template <class T> T flush(T x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T{0}, x) : x; }
template <class T> T saturate(T x) { return x != x ? T{0} : x < 0 ? T{0} : x > 1 ? T{1} : x; }

// --- bits
template <class T> T and_(T a, T b) { return a & b; }
template <class T> T or_(T a, T b) { return a | b; }
template <class T> T xor_(T a, T b) { return a ^ b; }
template <class T> T not_(T a) {
  if constexpr (std::is_same_v<T, bool>)
    return !a;
  else
    return static_cast<T>(~a);
}
template <class T> T shl(T a, u32 n) { return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<u64>(a) << n); }
template <class T> T shr(T a, u32 n) {
  if (n >= 8 * sizeof(T)) n = 8 * sizeof(T) - 1, a = static_cast<T>(std::is_signed_v<T> ? a : 0);
  return static_cast<T>(a >> n);
}
template <class T> T bfi(T a, T b, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 255;
  length &= 255;
  if (position >= kBits || length == 0) return b;
  const T ones = length >= kBits ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
  const T mask = static_cast<T>(ones << position);
  return static_cast<T>((b & ~mask) | (static_cast<T>(a << position) & mask));
}
template <class T> T bfe(T a, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 255;
  length &= 255;
  using U = std::make_unsigned_t<T>;
  U r = 0;
  for (u32 i = 0; i < kBits; ++i) {
    const bool past = i >= length || position + i >= kBits;
    const u32 at = past ? std::min(position + length - 1, kBits - 1) : position + i;
    const bool bit = length == 0 || (past && !std::is_signed_v<T>) ? false : static_cast<U>(a) >> at & 1;
    r |= static_cast<U>(U{bit} << i);
  }
  return static_cast<T>(r);
}
inline u32 popc(u32 a) { return static_cast<u32>(__builtin_popcount(a)); }
inline u32 popc(u64 a) { return static_cast<u32>(__builtin_popcountll(a)); }
inline u32 clz(u32 a) { return a == 0 ? 32 : static_cast<u32>(__builtin_clz(a)); }
inline u32 clz(u64 a) { return a == 0 ? 64 : static_cast<u32>(__builtin_clzll(a)); }
template <class T> T brev(T a) {
  T r = 0;
  for (u32 i = 0; i < 8 * sizeof(T); ++i) r |= static_cast<T>((a >> i & 1) << (8 * sizeof(T) - 1 - i));
  return r;
}
template <class T> u32 bfind(T a, bool shift_amount) {
  using U = std::make_unsigned_t<T>;
  const U u = static_cast<U>(a < 0 ? ~a : a);
  if (u == 0) return ~0u;
  const u32 at = 63 - clz(static_cast<u64>(u));
  return shift_amount ? 8 * static_cast<u32>(sizeof(T)) - 1 - at : at;
}
inline u32 lop3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  for (u32 i = 0; i < 8; ++i)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
inline u32 prmt(u32 a, u32 b, u32 selector) {
  const u64 bytes = u64{b} << 32 | a;
  u32 r = 0;
  for (u32 i = 0; i < 4; ++i) {
    const u32 s = selector >> (4 * i) & 15;
    u32 byte = static_cast<u32>(bytes >> (8 * (s & 7)) & 255);
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline u32 shf(u32 a, u32 b, u32 n, bool left, bool wrap) {
  n = wrap ? n & 31 : n > 32 ? 32 : n;
  const u64 both = u64{b} << 32 | a;
  return static_cast<u32>(left ? (both << n) >> 32 : both >> n);
}
inline u32 dp4a(u32 a, u32 b, u32 c, bool a_signed, bool b_signed) {
  for (int i = 0; i < 4; ++i) {
    const u8 x = static_cast<u8>(a >> 8 * i), y = static_cast<u8>(b >> 8 * i);
    c += static_cast<u32>((a_signed ? static_cast<s8>(x) : x) * (b_signed ? static_cast<s8>(y) : y));
  }
  return c;
}

// --- conversions
template <class To, Round kHow, class From> To to_integer(From x) {
  if (x != x) return sizeof(To) == 8 ? static_cast<To>(1ull << 63) : To{0};
  f64 y = x;
  if constexpr (kHow == Round::nearest) y = std::nearbyint(y);
  if constexpr (kHow == Round::zero) y = std::trunc(y);
  if constexpr (kHow == Round::down) y = std::floor(y);
  if constexpr (kHow == Round::up) y = std::ceil(y);
  constexpr To kLow = std::numeric_limits<To>::min(), kHigh = std::numeric_limits<To>::max();
  if (y <= static_cast<f64>(kLow)) return kLow;
  return y >= static_cast<f64>(kHigh) ? kHigh : static_cast<To>(y);
}
template <Round kHow, class T> T to_integral(T x) {
  if constexpr (kHow == Round::nearest) return std::nearbyint(x);
  if constexpr (kHow == Round::zero) return std::trunc(x);
  if constexpr (kHow == Round::down) return std::floor(x);
  return std::ceil(x);
}
template <class To, class From> To saturate_integer(From x) {
  const auto y = static_cast<__int128>(x);
  const auto low = static_cast<__int128>(std::numeric_limits<To>::min());
  const auto high = static_cast<__int128>(std::numeric_limits<To>::max());
  return static_cast<To>(y < low ? low : y > high ? high : y);
}

// Add, multiply and the like towards zero, up or down, by way of the exact error.
template <Round kHow> f32 directed(f64 exact) {
  f32 r = static_cast<f32>(exact);
  if (std::isinf(r) || r != r) return r;
  if (kHow == Round::down || (kHow == Round::zero && exact > 0))
    return static_cast<f64>(r) > exact ? std::nextafterf(r, -INFINITY) : r;
  if (kHow == Round::up || kHow == Round::zero) return static_cast<f64>(r) < exact ? std::nextafterf(r, INFINITY) : r;
  return r;
}

// --- approximations: the nearest float, or one a few units away from it, the same one every time
inline f32 approximate(f32 nearest, f32 x, int units) {
  if (settings.rounding == 0 || !std::isfinite(nearest) || nearest == 0) return nearest;
  u64 h = (settings.rounding ^ __builtin_bit_cast(u32, x)) * 0x9e3779b97f4a7c15ull;
  h ^= h >> 29;
  const int off = static_cast<int>(h * 0xbf58476d1ce4e5b9ull >> 40) % (2 * units + 1) - units;
  const u32 u = __builtin_bit_cast(u32, nearest);
  const f32 moved = as<f32>(u + static_cast<u32>(off));
  return std::isfinite(moved) && std::signbit(moved) == std::signbit(nearest) ? moved : nearest;
}
inline f32 ex2(f32 x) { return approximate(std::exp2(x), x, 2); }
inline f32 lg2(f32 x) { return approximate(std::log2(x), x, 1); }
inline f32 rcp(f32 x) { return approximate(1 / x, x, 1); }
inline f32 rsqrt(f32 x) { return approximate(1 / std::sqrt(x), x, 2); }
inline f32 sqrt(f32 x) { return approximate(std::sqrt(x), x, 1); }
inline f32 sin(f32 x) { return approximate(std::sin(x), x, 4); }
inline f32 cos(f32 x) { return approximate(std::cos(x), x, 4); }
inline f32 tanh(f32 x) { return approximate(std::tanh(x), x, 1024); }
inline f32 div_approximately(f32 a, f32 b) { return approximate(a / b, a, 2); }

}  // namespace model
