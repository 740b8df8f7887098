// Operations that a warp does together, and those of single threads on memory.
#pragma once
#include "alu.h"

namespace model {

template <class T>
T& brought(Warp& w, int lane) {
  return *static_cast<T*>(w.threads[lane]->operands);
}
template <class F>
void for_lanes(u32 mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

// --- memory
template <class T, int N>
void load(const void* p, T (&out)[N], int line, Access kind = Access::read) {
  if (access(p, sizeof out, kind, line))
    memcpy(out, p, sizeof out);
  else
    memset(out, 0xff, sizeof out);
}
template <class T, int N>
void store(void* p, const T (&values)[N], int line, Access kind = Access::write) {
  if (access(p, sizeof values, kind, line)) memcpy(p, values, sizeof values);
}
template <class T, class F>
T read_modify_write(void* p, int line, F f) {
  T old{};
  const bool plain = is_mutated(line);
  if (!access(p, sizeof(T), plain ? Access::read : Access::atomic, line)) return old;
  if (plain) access(p, sizeof(T), Access::write, line);
  memcpy(&old, p, sizeof old);
  const T updated = f(old);
  memcpy(p, &updated, sizeof updated);
  return old;
}
// A loop that polls memory would go round for ever: others get a turn.
inline void after_polling() {
  static u32 polls = 0;
  if (++polls % 8 == 0) give_way();
}

// --- exchange between lanes
struct Shuffle { u32 value, source, result; };
inline u32 shuffle(char how, u32 value, u32 b, u32 c, u32 mask, bool& inside, int line) {
  const int lane = static_cast<int>(current->lane), clamp = c & 31, segment = c >> 8 & 31;
  const int last = (lane & segment) | (clamp & ~segment), first = lane & segment, by = b & 31;
  int from = 0;
  switch (how) {
    case 'u':
      from = lane - by;
      inside = from >= last;
      break;
    case 'd':
      from = lane + by;
      inside = from <= last;
      break;
    case 'b':
      from = lane ^ by;
      inside = from <= last;
      break;
    default:
      from = first | (by & ~segment);
      inside = from <= last;
  }
  Shuffle s = {value, static_cast<u32>(inside ? from : lane), 0};
  warp_operation(
      "shfl.sync", mask,
      [](Warp& w, u32 m) {
        for_lanes(m, [&](int l) {
          auto& mine = brought<Shuffle>(w, l);
          if (!(m >> mine.source & 1)) {
            report("shuffle from an absent lane", w.line, "lane %d reads lane %u, but the mask is %08x", l,
                   mine.source, m);
            mine.result = ~0u;
          } else {
            mine.result = brought<Shuffle>(w, static_cast<int>(mine.source)).value;
          }
        });
      },
      &s, line, false);
  return s.result;
}

struct Vote { u32 value, result; };
inline u32 ballot(bool predicate, u32 mask, int line, const char* name = "vote.sync.ballot") {
  Vote v = {predicate, 0};
  warp_operation(
      name, mask,
      [](Warp& w, u32 m) {
        u32 r = 0;
        for_lanes(m, [&](int l) { r |= brought<Vote>(w, l).value << l; });
        for_lanes(m, [&](int l) { brought<Vote>(w, l).result = r; });
      },
      &v, line, false);
  return v.result;
}
inline bool vote_any(bool p, u32 mask, int line) { return ballot(p, mask, line, "vote.sync.any") != 0; }
inline bool vote_all(bool p, u32 mask, int line) { return ballot(!p, mask, line, "vote.sync.all") == 0; }
inline bool vote_uni(bool p, u32 mask, int line) {
  const u32 yes = ballot(p, mask, line, "vote.sync.uni");
  return yes == 0 || yes == (mask & current->warp->present);
}

template <class T>
struct Match {
  T value;
  u32 result;
};
template <class T>
u32 match_any(T value, u32 mask, int line) {
  Match<T> v = {value, 0};
  warp_operation(
      "match.any.sync", mask,
      [](Warp& w, u32 m) {
        for_lanes(m, [&](int l) {
          auto& mine = brought<Match<T>>(w, l);
          for_lanes(m, [&](int o) { mine.result |= u32{brought<Match<T>>(w, o).value == mine.value} << o; });
        });
      },
      &v, line, false);
  return v.result;
}
template <class T>
u32 match_all(T value, u32 mask, bool& all, int line) {
  const u32 same = match_any(value, mask, line);
  all = same == (mask & current->warp->present);
  return all ? same : 0;
}

template <class T>
struct Redux {
  T value, result;
  T (*join)(T, T);
};
template <class T>
T redux(const char* name, T value, T (*join)(T, T), u32 mask, int line) {
  Redux<T> v = {value, value, join};
  warp_operation(
      name, mask,
      [](Warp& w, u32 m) {
        const int first = __builtin_ctz(m);
        T r = brought<Redux<T>>(w, first).value;
        for_lanes(m & (m - 1), [&](int l) { r = brought<Redux<T>>(w, l).join(r, brought<Redux<T>>(w, l).value); });
        for_lanes(m, [&](int l) { brought<Redux<T>>(w, l).result = r; });
      },
      &v, line, false);
  return v.result;
}
inline u32 elect(u32 mask, bool& chosen) {
  const u32 leader = static_cast<u32>(__builtin_ctz(mask & current->warp->present));
  chosen = current->lane == leader;
  return leader;
}

// --- matrices: csrc of their meaning is the PTX manual, "Warp-level matrix instructions"
// Rows of 16 bytes of 8x8 matrices of 16-bit elements; lane 8 i + r brings the address of row r of matrix i.
struct Matrices {
  const u8* row;
  u32 words[4];
  int line;
};
template <int kCount, bool kTransposed>
void ldmatrix(u32 address, u32 (&out)[kCount], int line) {
  const u8* row = shared_pointer(address);
  u64 words[2] = {};
  if (current->lane < 8 * kCount) load(row, words, line);
  Matrices x = {reinterpret_cast<const u8*>(words), {}, line};
  warp_operation(
      "ldmatrix.sync", ~0u,
      [](Warp& w, u32) {
        for (int i = 0; i < kCount; ++i) {
          u16 m[8][8];
          for (int r = 0; r < 8; ++r) memcpy(m[r], brought<Matrices>(w, 8 * i + r).row, 16);
          for (int l = 0; l < 32; ++l) {
            const int a = l / 4, b = l % 4 * 2;
            const u32 low = kTransposed ? m[b][a] : m[a][b], high = kTransposed ? m[b + 1][a] : m[a][b + 1];
            brought<Matrices>(w, l).words[i] = low | high << 16;
          }
        }
      },
      &x, line);
  for (int i = 0; i < kCount; ++i) out[i] = x.words[i];
}
template <int kCount, bool kTransposed>
void stmatrix(u32 address, const u32 (&in)[kCount], int line) {
  u8* row = shared_pointer(address);
  u64 words[2] = {};
  Matrices x = {reinterpret_cast<u8*>(words), {}, line};
  memcpy(x.words, in, sizeof in);
  warp_operation(
      "stmatrix.sync", ~0u,
      [](Warp& w, u32) {
        for (int i = 0; i < kCount; ++i) {
          u16 m[8][8];
          for (int l = 0; l < 32; ++l) {
            const u32 word = brought<Matrices>(w, l).words[i];
            const int a = l / 4, b = l % 4 * 2;
            (kTransposed ? m[b][a] : m[a][b]) = static_cast<u16>(word);
            (kTransposed ? m[b + 1][a] : m[a][b + 1]) = static_cast<u16>(word >> 16);
          }
          for (int r = 0; r < 8; ++r) memcpy(const_cast<u8*>(brought<Matrices>(w, 8 * i + r).row), m[r], 16);
        }
      },
      &x, line);
  if (current->lane < 8 * kCount) store(row, words, line);
}
struct Move { u32 word, result; };
inline u32 movmatrix(u32 word, int line) {
  Move x = {word, 0};
  warp_operation(
      "movmatrix.sync", ~0u,
      [](Warp& w, u32) {
        u16 m[8][8];
        for (int l = 0; l < 32; ++l) memcpy(&m[l / 4][l % 4 * 2], &brought<Move>(w, l).word, 4);
        for (int l = 0; l < 32; ++l)
          brought<Move>(w, l).result = m[l % 4 * 2][l / 4] | u32{m[l % 4 * 2 + 1][l / 4]} << 16;
      },
      &x, line);
  return x.result;
}

// One mma.sync of several in a row: where its operands are among the registers that all of them use.
struct Mma { u8 d[4], a[4], b[2], c[4]; };
enum class Element { bf16, f16, e4m3, e5m2 };
// registers: what this lane brings and takes away.
void mma(Element a, Element b, int k, const Mma* steps, int count, u32* registers, int line);

}  // namespace model
