// Slots (token, j) sorted by their expert: a stable counting sort in blocks of tokens. Where the cuts fall depends on
// sizes alone, and the result not even on that.
#pragma once
#include "core/parallel.h"

namespace sk::moe {

struct Slots {
  const int32_t* ids;  // [tokens, top_k]; what is not an expert is dropped
  int64_t tokens, top_k, experts;

  int64_t tokens_a_block() const {
    constexpr int64_t kWorthAThread = 8192;  // slots
    return ceil_div(max(kWorthAThread, experts), max(top_k, 1));
  }
  int64_t blocks() const { return max(1, ceil_div(tokens, tokens_a_block())); }
  int64_t first_token(int64_t block) const { return min(tokens, block * tokens_a_block()); }
  bool is_expert(int32_t id) const { return static_cast<uint32_t>(id) < static_cast<uint64_t>(experts); }
};

// counts [blocks, experts]: the slots of each expert in each block.
static void count_slots(const Slots& s, int32_t* counts) {
  parallel_for(s.blocks(), [&](int64_t block, int) {
    int32_t* mine = counts + block * s.experts;
    for (int64_t e = 0; e < s.experts; ++e) mine[e] = 0;
    for (int64_t i = s.first_token(block) * s.top_k; i < s.first_token(block + 1) * s.top_k; ++i)
      if (s.is_expert(s.ids[i])) ++mine[s.ids[i]];
  });
}

static int64_t rows_of(const Slots& s, const int32_t* counts, int64_t expert, int64_t alignment) {
  int64_t n = 0;
  for (int64_t b = 0; b < s.blocks(); ++b) n += counts[b * s.experts + expert];
  return n == 0 ? 0 : round_up(n, alignment);
}

struct Permutation {
  int32_t* expert_offsets;  // [experts + 1]
  int32_t *row_token, *row_slot;  // [rows], -1 on padding
  int32_t* slot_row;  // [tokens, top_k], -1 where dropped
  int64_t rows;
};

// Takes the counts and leaves them changed. rows is at least what rows_of sums up to.
static void permute(const Slots& s, int32_t* counts, int64_t alignment, const Permutation& p) {
  int64_t row = 0;
  const auto pad = [&](int64_t until) {
    for (; row < until; ++row) p.row_token[row] = p.row_slot[row] = -1;
  };
  for (int64_t e = 0; e < s.experts; ++e) {
    const int64_t end = row + rows_of(s, counts, e, alignment);
    p.expert_offsets[e] = static_cast<int32_t>(row);
    for (int64_t b = 0; b < s.blocks(); ++b) {  // a count becomes the row of the next slot
      int32_t* next = counts + b * s.experts + e;
      const int32_t n = *next;
      *next = static_cast<int32_t>(row);
      row += n;
    }
    pad(end);
  }
  p.expert_offsets[s.experts] = static_cast<int32_t>(row);
  pad(p.rows);

  parallel_for(s.blocks(), [&](int64_t block, int) {
    int32_t* next = counts + block * s.experts;
    for (int64_t t = s.first_token(block); t < s.first_token(block + 1); ++t)
      for (int64_t slot = t * s.top_k; slot < (t + 1) * s.top_k; ++slot) {
        const int32_t id = s.ids[slot];
        if (!s.is_expert(id)) {
          p.slot_row[slot] = -1;
          continue;
        }
        const int32_t to = next[id]++;
        p.row_token[to] = static_cast<int32_t>(t);
        p.row_slot[to] = static_cast<int32_t>(slot);
        p.slot_row[slot] = to;
      }
  });
}

}  // namespace sk::moe
