// Memory that a limit is held to: how much a thing takes is known before it is made.
#pragma once
#include "core/types.h"

namespace sk::indexer {

// Memory in pieces; without any, only how much it takes.
struct Memory {
  uint8_t* data;
  int64_t used;
};
template <class T>
static inline void take(Memory& m, T*& piece, int64_t count) {
  piece = m.data == nullptr ? nullptr : reinterpret_cast<T*>(m.data + m.used);
  m.used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
}

// The k best of a stream of numbers, while it lasts (indexer/best.h).
struct Best {
  float* numbers;    // [room]
  int32_t* indices;  // [room]
  int64_t k, room;
  int64_t count;     // candidates
  float above;       // what is not larger than this is none
};

constexpr int64_t kBlock = 1024;  // numbers taken between two looks at the room that is left
constexpr int64_t kStride = 64;   // numbers counted at once
constexpr int64_t room_for(int64_t k) { return round_up(2 * k + kBlock, kStride) + kStride; }

static inline Best take_best(Memory& m, int64_t k, float above) {
  Best b = {.numbers = nullptr, .indices = nullptr, .k = k, .room = room_for(k), .count = 0, .above = above};
  take(m, b.numbers, b.room);
  take(m, b.indices, b.room);
  return b;
}

}  // namespace sk::indexer
