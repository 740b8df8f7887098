#include "core/arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <vector>

namespace sk {
namespace {

constexpr int64_t kAlign = 64, kHuge = 2 << 20;

struct Block {
  char* data;
  int64_t size;
};

// Blocks are filled in order. When all is given back, several blocks become one large enough for them all.
struct Arena {
  std::vector<Block> blocks;
  int64_t block = 0, used = 0;

  ~Arena() {
    for (const Block& b : blocks) std::free(b.data);
  }

  static char* allocate(int64_t n) {
    void* p = std::aligned_alloc(static_cast<size_t>(n < kHuge ? kAlign : kHuge), static_cast<size_t>(n));
#ifdef MADV_HUGEPAGE
    if (p != nullptr && n >= kHuge) madvise(p, static_cast<size_t>(n), MADV_HUGEPAGE);
#endif
    return static_cast<char*>(p);
  }

  void* take(int64_t n) {
    n = round_up(max(n, 1), kAlign);
    for (; block < static_cast<int64_t>(blocks.size()); ++block, used = 0)
      if (used + n <= blocks[block].size) {
        used += n;
        return blocks[block].data + used - n;
      }
    const int64_t size = round_up(max(n, 64 << 10), n < kHuge ? kAlign : kHuge);
    char* data = allocate(size);
    if (data == nullptr) throw std::bad_alloc();
    blocks.push_back({data, size});
    used = n;
    return blocks.back().data;
  }

  void give_back(int64_t to_block, int64_t to_used) {
    block = to_block;
    used = to_used;
    if (block != 0 || used != 0 || blocks.size() < 2) return;
    int64_t total = 0;
    for (const Block& b : blocks) {
      total += b.size;
      std::free(b.data);
    }
    blocks.clear();
    total = round_up(total, kHuge);
    if (char* data = allocate(total)) blocks.push_back({data, total});
  }
};

thread_local Arena arena;

}  // namespace

Scratch::Scratch() : block_(arena.block), used_(arena.used) {}
Scratch::~Scratch() { arena.give_back(block_, used_); }
void* Scratch::bytes(int64_t n) { return arena.take(n); }

}  // namespace sk
