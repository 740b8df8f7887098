// The cache on a device: how many rows there are, and in which order pages can be copied, nobody finds out.
#include <iterator>

#include "bindings/families.h"
#include "bindings/pool.h"
#include "kernels/kv_copy_pages/op.h"
#include "kernels/kv_gather/op.h"

namespace sk {
namespace {

void kv_gather(Call& c) {
  enum { kPool, kBlockTable, kSeqLens, kStarts };
  enum { kFormat, kPageSize, kTotal };
  const PoolArg pool = pool_arg(c, kPool, "pool", kFormat, kPageSize);
  const TensorView& table = c.arg(kBlockTable);
  if (!c.option(kTotal).present) fail("total is None, expected a number of rows: on CUDA nothing waits for it");
  const int64_t rows = c.integer(kTotal), sequences = table.rows();
  if (rows < 0) fail("total is ", rows, ", expected 0 or more");
  c.set_size("N", rows);
  c.make_outputs();
  const TensorView &out = c.out(0), &scale = c.out(1);
  const bool index = scale.present();
  auto* const offsets = static_cast<int64_t*>(c.device_scratch((sequences + 1) * size_of(Dtype::i64)));
  c.run(kv_gather::kVariants, {.format = pool.format,
                               .pool = {pool.data, pool.page_stride, pool.page_size},
                               .row_stride = pool.row_stride,
                               .block_table = c.indices(kBlockTable),
                               .starts = c.arg(kStarts).present() ? c.indices(kStarts) : nullptr,
                               .offsets = nullptr,
                               .sequences = sequences,
                               .max_pages = table.last(),
                               .out = out.as<uint8_t>(),
                               .scale = index ? scale.as<uint8_t>() : nullptr,
                               .rows = rows,
                               .row_bytes = out.last() * size_of(out.dtype),
                               .scale_bytes = index ? scale.last() * size_of(scale.dtype) : 0,
                               .on_device = {.lens = c.indices(kSeqLens), .offsets = offsets, .pages = pool.pages}});
}

void kv_copy_pages(Call& c) {
  enum { kSrc, kDst, kPairs };
  const TensorView &src = c.arg(kSrc), &dst = c.arg(kDst);
  if (src.dtype != dst.dtype || src.rank != dst.rank) fail("src_pool and dst_pool are not of one dtype and rank");
  const int64_t item = size_of(src.dtype), rows = src.rank == 3 ? src.shape[1] : 1, bytes = src.last() * item;
  const int64_t count = c.arg(kPairs).rows();
  c.run(kv_copy_pages::kVariants,
        {.src = {src.as<const uint8_t>(), src.row_stride() * item * rows, src.row_stride() * item},
         .dst = {dst.as<uint8_t>(), dst.row_stride() * item * rows, dst.row_stride() * item},
         .spare = src.data == dst.data ? static_cast<uint8_t*>(c.device_scratch(count * rows * bytes)) : nullptr,
         .copies = nullptr,
         .waves = nullptr,
         .wave_count = 0,
         .rows = rows,
         .row_bytes = bytes,
         .on_device = {
             .pairs = c.indices(kPairs), .count = count, .src_pages = src.shape[0], .dst_pages = dst.shape[0]}});
}

constexpr Binding kBindings[] = {
    {"kv_gather", "pool block_table seq_lens starts format page_size total width scales out_dtype scale_dtype",
     &kv_gather},
    {"kv_copy_pages", "src_pool dst_pool pairs", &kv_copy_pages},
};

}  // namespace

Family cuda_kv_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
