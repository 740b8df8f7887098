// The paged KV cache.
#include <algorithm>
#include <cmath>
#include <vector>

#include "bindings/families.h"
#include "bindings/pool.h"
#include "kernels/kv_copy_pages/op.h"
#include "kernels/kv_gather/op.h"
#include "kernels/kv_read/op.h"
#include "kernels/kv_write/op.h"

namespace sk {
namespace {

void kv_write(Call& c) {
  enum { kPool, kSlots, kValues };
  enum { kFormat, kPageSize, kScaleRounding, kAmaxFloor };
  const PoolArg pool = pool_arg(c, kPool, "pool", kFormat, kPageSize);
  const TensorView& values = c.arg(kValues);
  const int64_t dim = width_of(pool, "values", values.last());
  const kv::Target target = target_of(c, pool, kScaleRounding, kAmaxFloor);
  const kv::Slot* slots = slots_of(c, kSlots, pool);
  c.run(kv_write::kVariants, {.target = target,
                              .slots = slots,
                              .records = pool.records(),
                              .values = values.as_rows<const void>(),
                              .dtype = values.dtype,
                              .tokens = values.rows(),
                              .dim = dim});
}

void kv_read(Call& c) {
  enum { kPool, kSlots };
  enum { kFormat, kPageSize, kDtype, kWidth };
  const PoolArg pool = pool_arg(c, kPool, "pool", kFormat, kPageSize);
  const auto dtype = static_cast<Dtype>(c.integer(kDtype));
  if (dtype != Dtype::f32 && dtype != Dtype::bf16)
    fail("dtype is not a dtype of results, expected torch.bfloat16 or torch.float32");
  const kv::Slot* slots = slots_of(c, kSlots, pool);
  c.make_outputs();
  c.run(kv_read::kVariants, {.format = pool.format,
                             .pool = pool.by_slots<const uint8_t>(),
                             .plain_dtype = pool.dtype,
                             .slots = slots,
                             .records = pool.records(),
                             .out = c.out(0).data,
                             .dtype = dtype,
                             .rows = c.arg(kSlots).size(),
                             .dim = c.integer(kWidth)});
}

void kv_gather(Call& c) {
  enum { kPool, kBlockTable, kSeqLens, kStarts };
  enum { kFormat, kPageSize, kTotal };
  const PoolArg pool = pool_arg(c, kPool, "pool", kFormat, kPageSize);
  const TensorView& table = c.arg(kBlockTable);
  const int64_t sequences = table.rows(), max_pages = table.last(), reach = max_pages * pool.page_size;
  const int32_t* block_table = c.indices(kBlockTable);
  const int32_t* lens = c.indices(kSeqLens);
  const int32_t* starts = c.arg(kStarts).present() ? c.indices(kStarts) : nullptr;
  if (starts == nullptr) {
    int32_t* zeros = c.scratch().take<int32_t>(sequences);
    for (int64_t b = 0; b < sequences; ++b) zeros[b] = 0;
    starts = zeros;
  }
  int64_t* offsets = c.scratch().take<int64_t>(sequences + 1);
  offsets[0] = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t first = starts[b], end = first + lens[b];
    if (first < 0 || first > reach)
      fail("starts[", b, "] is ", element(c.arg(kStarts), b), ", expected 0 to ", reach,
           ", what the block table holds");
    if (lens[b] < 0 || end > reach)
      fail("seq_lens[", b, "] is ", element(c.arg(kSeqLens), b), ", expected 0 to ", reach - first,
           ", what the block table holds from token ", first, " on");
    for (int64_t i = first / pool.page_size; i * pool.page_size < end && lens[b] > 0; ++i)
      if (const int64_t page = block_table[b * max_pages + i]; page < 0 || page >= pool.pages)
        fail("block_table[", b, ", ", i, "] is ", element(table, b * table.row_stride() + i), ", expected 0 to ",
             pool.pages - 1, ": a page of the pool");
    offsets[b + 1] = offsets[b] + lens[b];
  }
  int64_t rows = offsets[sequences];
  if (c.option(kTotal).present) {
    if (c.integer(kTotal) < rows)
      fail("total is ", c.integer(kTotal), ", expected at least the ", rows, " tokens of seq_lens");
    rows = c.integer(kTotal);
  }
  c.set_size("N", rows);
  c.make_outputs();
  const TensorView &out = c.out(0), &scale = c.out(1);
  const bool index = scale.present();
  c.run(kv_gather::kVariants, {.format = pool.format,
                               .pool = {pool.data, pool.page_stride, pool.page_size},
                               .row_stride = pool.row_stride,
                               .block_table = block_table,
                               .starts = starts,
                               .offsets = offsets,
                               .sequences = sequences,
                               .max_pages = max_pages,
                               .out = out.as<uint8_t>(),
                               .scale = index ? scale.as<uint8_t>() : nullptr,
                               .rows = rows,
                               .row_bytes = out.last() * size_of(out.dtype),
                               .scale_bytes = index ? scale.last() * size_of(scale.dtype) : 0});
}

// Copies in an order in which no page is overwritten before it was read, and where each wave of them begins: within a
// wave no page is both read and written. A cycle begins by saving one of its pages to the spare page.
struct Waves {
  std::vector<kv_copy_pages::Copy> copies;
  std::vector<int64_t> begins{0};
  bool spare = false;
};

void end_wave(Waves& waves) { waves.begins.push_back(static_cast<int64_t>(waves.copies.size())); }

// The copies are sorted by destination, which all differ.
Waves in_waves(std::vector<kv_copy_pages::Copy> copies, bool one_pool) {
  Waves waves;
  if (!one_pool) {
    waves.copies = std::move(copies);
    end_wave(waves);
    return waves;
  }
  std::erase_if(copies, [](const auto& c) { return c.from == c.to; });
  const size_t n = copies.size();
  std::vector<size_t> overwriter(n, n);  // of the page that a copy reads
  std::vector<int64_t> readers(n, 0);    // of the page that a copy writes, still to come
  for (size_t i = 0; i < n; ++i) {
    const auto found = std::ranges::lower_bound(copies, copies[i].from, {}, &kv_copy_pages::Copy::to);
    if (found == copies.end() || found->to != copies[i].from) continue;
    overwriter[i] = static_cast<size_t>(found - copies.begin());
    ++readers[overwriter[i]];
  }
  std::vector<size_t> ready, next;
  const auto drain = [&] {
    for (; !ready.empty(); std::swap(ready, next), next.clear()) {
      for (const size_t i : ready) {
        waves.copies.push_back(copies[i]);
        readers[i] = -1;  // done
        if (overwriter[i] < n && --readers[overwriter[i]] == 0) next.push_back(overwriter[i]);
      }
      end_wave(waves);
    }
  };
  for (size_t i = 0; i < n; ++i)
    if (readers[i] == 0) ready.push_back(i);
  drain();
  for (size_t i = 0; i < n; ++i) {
    if (readers[i] < 0) continue;  // what is left are cycles
    waves.spare = true;
    waves.copies.push_back({copies[i].to, kv_copy_pages::kSpare});
    end_wave(waves);
    size_t last = i;
    while (overwriter[last] != i) last = overwriter[last];
    copies[last].from = kv_copy_pages::kSpare;
    overwriter[last] = n;
    ready.push_back(i);
    drain();
  }
  return waves;
}

void kv_copy_pages(Call& c) {
  enum { kSrc, kDst, kPairs };
  const TensorView &src = c.arg(kSrc), &dst = c.arg(kDst);
  if (src.dtype != dst.dtype || src.rank != dst.rank) fail("src_pool and dst_pool are not of one dtype and rank");
  const int64_t count = c.arg(kPairs).rows();
  const int64_t* pairs = wide_indices(c, kPairs);
  std::vector<kv_copy_pages::Copy> copies(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t page = pairs[2 * i + side], limit = (side == 0 ? src : dst).shape[0];
      if (page < 0 || page >= limit)
        fail("pairs[", i, ", ", side, "] is ", page, ", expected 0 to ", limit - 1, ": a page of ",
             side == 0 ? "src_pool" : "dst_pool");
      (side == 0 ? copies[static_cast<size_t>(i)].from : copies[static_cast<size_t>(i)].to) = page;
    }
  std::ranges::sort(copies, {}, &kv_copy_pages::Copy::to);
  const auto twice = std::ranges::adjacent_find(copies, {}, &kv_copy_pages::Copy::to);
  if (twice != copies.end()) fail("pairs name page ", twice->to, " of dst_pool as a destination twice");
  const Waves waves = in_waves(std::move(copies), src.data == dst.data);
  const int64_t item = size_of(src.dtype), rows = src.rank == 3 ? src.shape[1] : 1, bytes = src.last() * item;
  const auto pages = [&](const TensorView& t) {  // of whole rows, or of one where these follow one another
    return std::pair(t.row_stride() * item * rows, t.row_stride() * item);
  };
  const auto [src_page, src_row] = pages(src);
  const auto [dst_page, dst_row] = pages(dst);
  const bool joined = src_row == bytes && dst_row == bytes;
  c.run(kv_copy_pages::kVariants, {.src = {src.as<const uint8_t>(), src_page, src_row},
                                   .dst = {dst.as<uint8_t>(), dst_page, dst_row},
                                   .spare = waves.spare ? c.scratch().take<uint8_t>(rows * bytes) : nullptr,
                                   .copies = waves.copies.data(),
                                   .waves = waves.begins.data(),
                                   .wave_count = static_cast<int64_t>(waves.begins.size()) - 1,
                                   .rows = joined ? 1 : rows,
                                   .row_bytes = joined ? rows * bytes : bytes});
}

constexpr Binding kBindings[] = {
    {"kv_write", "pool slots values format page_size scale_rounding amax_floor", &kv_write},
    {"kv_read", "pool slots format page_size dtype width", &kv_read},
    {"kv_gather", "pool block_table seq_lens starts format page_size total width scales out_dtype scale_dtype",
     &kv_gather},
    {"kv_copy_pages", "src_pool dst_pool pairs", &kv_copy_pages},
};

}  // namespace

Family kv_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
