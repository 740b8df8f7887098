// Memory looked up by hashes of n-grams.
#include <cmath>
#include <iterator>

#include "bindings/families.h"
#include "bindings/indices.h"
#include "kernels/engram_gate/op.h"
#include "kernels/engram_hash/op.h"
#include "kernels/engram_lookup/op.h"

namespace sk {
namespace {

constexpr int64_t kEveryInt = int64_t{INT32_MAX} + 1;

void engram_hash(Call& c) {
  enum { kIds, kMultipliers, kPrimes, kOffsets };
  const int64_t tokens = c.size("T"), layers = c.size("L"), longest = c.size("N"), heads = c.size("H");
  if (longest < 1) fail("ngram_ids has no columns, expected at least 1");
  const int32_t *ids = c.indices(kIds), *primes = c.indices(kPrimes), *offsets = c.indices(kOffsets);
  check_range(c, kIds, "ngram_ids", ids, -int64_t{INT32_MAX}, kEveryInt);
  check_range(c, kPrimes, "primes", primes, 1, kEveryInt);
  check_range(c, kOffsets, "offsets", offsets, 0, kEveryInt);
  const int64_t columns = (longest - 1) * heads;
  for (int64_t i = 0; Call::kReadsValues && i < layers * columns; ++i)
    if (int64_t{primes[i]} - 1 + offsets[i] > INT32_MAX)
      fail("offsets[", i / columns, ", ", i % columns, "] is ", offsets[i], ", and primes has ", primes[i],
           " there: too large for int32 to number the rows");
  c.make_outputs();
  c.run(engram_hash::kVariants, {.ids = ids,
                                 .multipliers = c.arg(kMultipliers).as<const int64_t>(),
                                 .primes = primes,
                                 .offsets = offsets,
                                 .inverses = c.scratch().take<uint64_t>(layers * columns),
                                 .rows = c.out(0).as<int32_t>(),
                                 .tokens = tokens,
                                 .layers = layers,
                                 .longest = longest,
                                 .heads = heads});
}

void engram_lookup(Call& c) {
  enum { kTable, kRows, kScale, kDtype = 0 };
  const TensorView &table = c.arg(kTable), &scale = c.arg(kScale);
  const bool codes = table.dtype == Dtype::e4m3;
  if (codes != scale.present())
    fail("scale is ", codes ? "missing, expected one for every 32 codes of the table"
                            : "given, expected none for a table that is not float8_e4m3fn");
  const auto dtype = static_cast<Dtype>(c.integer(kDtype));
  if (dtype != (codes ? Dtype::bf16 : table.dtype)) fail("dtype is not what this table gives");
  const int32_t* rows = c.indices(kRows);
  check_range(c, kRows, "rows", rows, -1, table.rows());
  c.make_outputs();
  c.run(engram_lookup::kVariants, {.table = {table.as<const uint8_t>(), table.row_stride() * size_of(table.dtype)},
                                   .scale = {scale.as<const uint8_t>(), codes ? scale.row_stride() : 0},
                                   .rows = rows,
                                   .out = c.out(0).as<uint8_t>(),
                                   .count = c.arg(kRows).size(),
                                   .dim = table.last(),
                                   .bytes = table.last() * size_of(dtype),
                                   .entries = table.rows()});
}

void engram_gate(Call& c) {
  enum { kX, kK, kV, kW, kTokenMask, kEps = 0 };
  const TensorView &x = c.arg(kX), &k = c.arg(kK), &v = c.arg(kV);
  const float eps = c.real(kEps);
  if (!(std::isfinite(eps) && eps >= 0))
    fail("eps is ", c.option(kEps).real, ", expected a finite number, 0 or more");
  c.make_outputs();
  c.run(engram_gate::kVariants, {.x = x.as_rows<const void>(),
                                 .k = k.as_rows<const void>(),
                                 .v = v.as_rows<const void>(),
                                 .x_dtype = x.dtype,
                                 .k_dtype = k.dtype,
                                 .v_dtype = v.dtype,
                                 .w = c.arg(kW).as_rows<const float>(),
                                 .token_mask = c.arg(kTokenMask).as<const uint8_t>(),
                                 .out = c.out(0).data,
                                 .tokens = x.shape[0],
                                 .streams = x.shape[1],
                                 .dim = x.shape[2],
                                 .eps = eps});
}

constexpr Binding kBindings[] = {
    {"engram_hash", "ngram_ids multipliers primes offsets", &engram_hash},
    {"engram_lookup", "table rows scale dtype", &engram_lookup},
    {"engram_gate", "x k v w token_mask eps", &engram_gate},
};

}  // namespace

Family engram_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
