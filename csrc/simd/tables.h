// Small-float codes as bf16, exactly.
#pragma once
#include "core/types.h"

namespace sk::simd {

template <class T, int N>
struct Table {
  T at[N];
};

// bf16 bits of the 128 magnitudes of e4m3: 4 exponent bits (bias 7), 3 mantissa bits, 0x7f is NaN.
constexpr uint16_t bf16_of_e4m3(int code) {
  const int e = code >> 3, m = code & 7;
  if (code == 0x7f) return 0x7fc0;
  if (e != 0) return static_cast<uint16_t>((e + 120) << 7 | m << 4);
  if (m == 0) return 0;
  const int top = m >= 4 ? 2 : m >= 2 ? 1 : 0;  // m * 2^-9, normal in bf16
  return static_cast<uint16_t>((top + 118) << 7 | ((m << (7 - top)) & 0x7f));
}

// bf16 bits of the 16 codes of e2m1: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives.
constexpr uint16_t bf16_of_e2m1(int code) {
  constexpr uint16_t magnitude[8] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
  return static_cast<uint16_t>(magnitude[code & 7] | (code & 8) << 12);
}

// A mask of four bits, two of them set, tells where two words go: of elements 2 * pair and 2 * pair + 1 the bytes
// that each takes, 0 and 1 or 2 and 3, for a byte shuffle; 0x80 makes a zero. The lowest three bits of the mask say
// it all.
constexpr uint32_t expand_2to4_bytes(int mask, int pair) {
  const int low = mask & 7, count = (low & 1) + (low >> 1 & 1) + (low >> 2), m = low | (count == 1) << 3;
  uint32_t bytes = 0;
  for (int half = 0, kept = 0, i = 0; i < 4; ++i) {
    const bool stays = (m >> i & 1) != 0 && kept < 2;
    if (i / 2 == pair) bytes |= (stays ? 0x0100u + 0x0202u * static_cast<uint32_t>(kept) : 0x8080u) << 16 * half++;
    kept += stays;
  }
  return bytes;
}

template <class T, int N, class F>
constexpr Table<T, N> tabulate(F f) {
  Table<T, N> t{};
  for (int i = 0; i < N; ++i) t.at[i] = static_cast<T>(f(i));
  return t;
}

alignas(64) constexpr auto kE4m3Words = tabulate<uint16_t, 128>([](int i) { return bf16_of_e4m3(i); });
alignas(64) constexpr auto kE4m3LowBytes = tabulate<uint8_t, 128>([](int i) { return bf16_of_e4m3(i) & 0xff; });
alignas(64) constexpr auto kE4m3HighBytes = tabulate<uint8_t, 128>([](int i) { return bf16_of_e4m3(i) >> 8; });
// The same by nibbles: what the low one makes of the low byte and the high one of the high byte, and which bits of
// both to turn for NaN and the eight subnormals. Codes are counted from NaN on: 0 is NaN, 1 is zero.
constexpr int kSmallestNormal = bf16_of_e4m3(8), kLargest = bf16_of_e4m3(0x7e);
alignas(16) constexpr auto kE4m3LowNibble = tabulate<uint8_t, 16>([](int i) { return (i - 1) << 4; });
alignas(16) constexpr auto kE4m3HighNibble = tabulate<uint8_t, 16>([](int i) {
  return (kSmallestNormal >> 8) + (i & 7) + (i & 8) * 16;
});
alignas(16) constexpr auto kE4m3MendLow = tabulate<uint8_t, 16>([](int i) {
  return i >= 1 && i <= 8 ? (bf16_of_e4m3(i - 1) & 0xff) ^ (i - 1) << 4 : 0;
});
alignas(16) constexpr auto kE4m3MendHigh = tabulate<uint8_t, 16>([](int i) {
  return i == 0 ? (bf16_of_e4m3(0x7f) ^ kLargest) >> 8 : i <= 8 ? (bf16_of_e4m3(i - 1) ^ kSmallestNormal) >> 8 : 0;
});
alignas(16) constexpr auto kE2m1LowBytes = tabulate<uint8_t, 16>([](int i) { return bf16_of_e2m1(i) & 0xff; });
alignas(16) constexpr auto kE2m1HighBytes = tabulate<uint8_t, 16>([](int i) { return bf16_of_e2m1(i) >> 8; });
alignas(64) constexpr auto kE2m1Words = tabulate<uint16_t, 32>([](int i) { return bf16_of_e2m1(i & 15); });
// The positions of the set bits of a byte, lowest first.
constexpr uint64_t set_bits_of(int byte) {
  uint64_t positions = 0;
  for (int bit = 0, n = 0; bit < 8; ++bit)
    if (byte >> bit & 1) positions |= static_cast<uint64_t>(bit) << 8 * n++;
  return positions;
}

alignas(64) constexpr auto kSetBits = tabulate<uint64_t, 256>([](int i) { return set_bits_of(i); });
alignas(64) constexpr auto kExpand01 = tabulate<uint32_t, 16>([](int i) { return expand_2to4_bytes(i, 0); });
alignas(64) constexpr auto kExpand23 = tabulate<uint32_t, 16>([](int i) { return expand_2to4_bytes(i, 1); });
alignas(64) constexpr auto kLaneNumbers = tabulate<int32_t, 16>([](int i) { return i; });

constexpr const uint16_t* kBf16OfE4m3 = kE4m3Words.at;
constexpr const uint8_t* kE4m3Low = kE4m3LowBytes.at;
constexpr const uint8_t* kE4m3High = kE4m3HighBytes.at;
constexpr const uint16_t* kBf16OfE2m1 = kE2m1Words.at;

}  // namespace sk::simd
