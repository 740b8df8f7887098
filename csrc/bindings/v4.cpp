// Positions, and what DeepSeek-V4 makes of its keys.
#include <cmath>
#include <iterator>

#include "bindings/families.h"
#include "bindings/frequencies.h"
#include "bindings/indices.h"
#include "bindings/pool.h"
#include "kernels/compress_kv/op.h"
#include "kernels/norm_rope_kv_write/op.h"
#include "kernels/rope/op.h"

namespace sk {
namespace {

// The options theta, rotary_dim, layout and offset from `first` on, and YaRN's four.
rope::Rotation rotation(Call& c, int first, int first_of_yarn, int64_t dim, const char* what, bool inverse) {
  enum { kTheta, kRotaryDim, kLayout, kOffset };
  enum { kFactor, kOriginal, kFast, kSlow };
  const double theta = c.option(first + kTheta).real;
  const int64_t width = c.integer(first + kRotaryDim), offset = c.integer(first + kOffset);
  const bool has_yarn = c.option(first_of_yarn).present;
  if (!(std::isfinite(theta) && theta >= 1) || (has_yarn && theta == 1))
    fail("theta is ", theta, ", expected a finite number", has_yarn ? " above 1" : ", 1 or more");
  if (width < 2 || width % 2 != 0 || width > dim)
    fail("rotary_dim is ", width, ", expected an even number from 2 to the ", dim, " channels of ", what);
  if (offset < 0 || offset > dim - width)
    fail("offset is ", offset, ", expected 0 to ", dim - width, ", for ", width, " of ", dim, " channels");
  const auto number = [&](int i) { return c.option(first_of_yarn + i).real; };
  const Yarn yarn = {number(kFactor), number(kOriginal), number(kFast), number(kSlow)};
  for (const double value : {yarn.factor, yarn.original_positions, yarn.beta_fast, yarn.beta_slow})
    if (has_yarn && !(std::isfinite(value) && value > 0)) fail("yarn has ", value, ", expected positive numbers");
  float* frequency = c.scratch().take<float>(round_up(width / 2, 16));
  rope_frequencies(theta, width / 2, has_yarn ? &yarn : nullptr, frequency);
  return {.frequency = frequency,
          .offset = offset,
          .pairs = width / 2,
          .half = c.integer(first + kLayout) == 1,
          .inverse = inverse};
}

void rope(Call& c) {
  enum { kX, kPositions };
  enum { kTheta, kInverse = 4, kYarnFactor };
  const TensorView &x = c.arg(kX), &given_positions = c.arg(kPositions);
  if (x.rank < 2) fail("x has one dimension, expected tokens and channels at least");
  const int64_t tokens = x.shape[0], dim = x.last();
  if (given_positions.size() != tokens)
    fail("positions has ", given_positions.size(), " entries, expected one for each of the ", tokens, " tokens of x");
  const rope::Rotation how = rotation(c, kTheta, kYarnFactor, dim, "x", c.flag(kInverse));
  const int32_t* positions = c.indices(kPositions);
  check_range(c, kPositions, "positions", positions, -int64_t{INT32_MAX}, int64_t{INT32_MAX} + 1);
  c.make_outputs();
  c.run(rope::kVariants, {.x = x.as_rows<const void>(),
                          .dtype = x.dtype,
                          .positions = positions,
                          .rotation = how,
                          .tables = c.floats(threads() * rope::table_floats(how.pairs), 0),
                          .y = c.out(0).data,
                          .tokens = tokens,
                          .heads = x.rows() / max(tokens, 1),
                          .dim = dim});
}

void compress_kv(Call& c) {
  enum { kKv, kGate, kApe, kNormWeight, kState };
  enum { kRatio, kOverlap, kEps, kSizes };
  const TensorView &kv = c.arg(kKv), &gate = c.arg(kGate), &weight = c.arg(kNormWeight), &state = c.arg(kState);
  const int64_t ratio = c.integer(kRatio), series = c.flag(kOverlap) ? 2 : 1, waiting = c.size("P");
  if (ratio < 1) fail("ratio is ", ratio, ", expected at least 1");
  const int64_t tokens = c.size("T"), windows = (waiting + tokens) / ratio, least = (series - 1) * ratio;
  const float eps = c.real(kEps);
  if (waiting < 0 || waiting >= ratio) fail("state has ", waiting, " tokens waiting, expected 0 to ", ratio - 1);
  if (!(std::isfinite(eps) && eps >= 0))
    fail("eps is ", c.option(kEps).real, ", expected a finite number, 0 or more");
  c.make_outputs();
  c.run(compress_kv::kVariants, {.state = state.as<const float>(),
                                 .kv = kv.as_rows<const void>(),
                                 .gate = gate.as_rows<const void>(),
                                 .kv_dtype = kv.dtype,
                                 .gate_dtype = gate.dtype,
                                 .ape = c.arg(kApe).as_rows<const float>(),
                                 .weight = weight.data,
                                 .weight_dtype = weight.dtype,
                                 .entries = c.out(0).data,
                                 .state_out = c.out(1).as<float>(),
                                 .scratch = c.floats(threads() * compress_kv::scratch_floats(weight.last()), 0),
                                 .before = least + waiting,
                                 .tokens = tokens,
                                 .windows = windows,
                                 .ratio = ratio,
                                 .series = series,
                                 .dim = weight.last(),
                                 .eps = eps});
}

void norm_rope_kv_write(Call& c) {
  enum { kPool, kSlots, kValues, kPositions, kNormWeight };
  enum { kEps, kTheta, kFormat = 5, kPageSize, kScaleRounding, kAmaxFloor, kYarnFactor };
  const PoolArg pool = pool_arg(c, kPool, "pool", kFormat, kPageSize);
  const TensorView &values = c.arg(kValues), &weight = c.arg(kNormWeight);
  const int64_t dim = width_of(pool, "values", values.last()), width = weight.present() ? weight.last() : 0;
  const float eps = c.real(kEps);
  if (width > dim) fail("norm_weight has ", width, " channels, expected at most the ", dim, " of values");
  if (!(std::isfinite(eps) && eps >= 0))
    fail("eps is ", c.option(kEps).real, ", expected a finite number, 0 or more");
  const rope::Rotation how = rotation(c, kTheta, kYarnFactor, dim, "values", false);
  const kv::Target target = target_of(c, pool, kScaleRounding, kAmaxFloor);
  const kv::Slot* slots = slots_of(c, kSlots, pool);
  const int32_t* positions = c.indices(kPositions);
  check_range(c, kPositions, "positions", positions, -int64_t{INT32_MAX}, int64_t{INT32_MAX} + 1);
  const int64_t floats = norm_rope_kv_write::scratch_floats(how.pairs, dim);
  c.run(norm_rope_kv_write::kVariants, {.target = target,
                                        .slots = slots,
                                        .records = pool.records(),
                                        .values = values.as_rows<const void>(),
                                        .dtype = values.dtype,
                                        .positions = positions,
                                        .weight = weight.data,
                                        .weight_dtype = weight.present() ? weight.dtype : Dtype::f32,
                                        .rotation = how,
                                        .scratch = c.floats(threads() * floats, how.pairs),
                                        .tokens = values.rows(),
                                        .dim = dim,
                                        .width = width,
                                        .eps = eps});
}

constexpr Binding kBindings[] = {
    {"norm_rope_kv_write",
     "pool slots values positions norm_weight eps theta rotary_dim layout offset format page_size scale_rounding "
     "amax_floor yarn_factor yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow",
     &norm_rope_kv_write},
    {"compress_kv", "kv gate ape norm_weight state ratio overlap eps sizes", &compress_kv},
    {"rope",
     "x positions theta rotary_dim layout offset inverse yarn_factor yarn_original_max_position_embeddings "
     "yarn_beta_fast yarn_beta_slow",
     &rope},
};

}  // namespace

Family v4_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
