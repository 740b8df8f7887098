// Quantisation, activation and normalisation.
#include <cmath>
#include <limits>

#include "bindings/families.h"
#include "kernels/dequantize/op.h"
#include "kernels/hadamard/op.h"
#include "kernels/layer_norm/op.h"
#include "kernels/quantize_fp4/op.h"
#include "kernels/quantize_fp8/op.h"
#include "kernels/quantize_fp8_blocks/op.h"
#include "kernels/rms_norm/op.h"
#include "kernels/sparsify_2to4/op.h"
#include "kernels/swiglu/op.h"
#include "kernels/swiglu_quantize_fp8/op.h"

namespace sk {
namespace {

float amax_floor(const Call& c, int option) {
  const float floor = c.real(option);
  if (!(floor >= 0 && std::isfinite(floor)))
    fail("amax_floor is ", c.option(option).real, ", expected a finite number, 0 or more");
  return floor;
}

// None: no limit.
float limit_of(const Call& c, int option) {
  if (!c.option(option).present) return std::numeric_limits<float>::infinity();
  const float limit = c.real(option);
  if (!(limit > 0)) fail("limit is ", c.option(option).real, ", expected a positive number or None");
  return limit;
}

// The size of one half of [gate | up].
int64_t half_of(const TensorView& gate_up) {
  if (gate_up.last() % 2 != 0)
    fail("gate_up has ", gate_up.last(), " columns, expected an even number: gate and up side by side");
  return gate_up.last() / 2;
}

// Two values of FP4 share a byte, which has one scale.
void require_even(const char* what, int64_t size) {
  if (size % 2 != 0) fail(what, " is ", size, ", expected an even number: two values share a byte");
}

void quantize_fp8(Call& c) {
  enum { kX, kGroupSize = 0, kScaleFormat, kAmaxFloor };
  const TensorView& x = c.arg(kX);
  const float floor = amax_floor(c, kAmaxFloor);
  c.make_outputs();
  c.run(quantize_fp8::kVariants, {.x = x.as_rows<const void>(),
                                  .dtype = x.dtype,
                                  .q = c.out(0).as<uint8_t>(),
                                  .scale = c.out(1).data,
                                  .scale_dtype = c.out(1).dtype,
                                  .rows = x.rows(),
                                  .dim = x.last(),
                                  .group = c.integer(kGroupSize),
                                  .floor = floor});
}

void quantize_fp8_blocks(Call& c) {
  enum { kW, kBlock = 0, kScaleFormat, kAmaxFloor };
  const TensorView& w = c.arg(kW);
  const float floor = amax_floor(c, kAmaxFloor);
  const int64_t rows = c.size("N");
  c.make_outputs();
  c.run(quantize_fp8_blocks::kVariants, {.w = w.as_rows<const void>(),
                                         .dtype = w.dtype,
                                         .q = c.out(0).as<uint8_t>(),
                                         .scale = c.out(1).data,
                                         .scale_dtype = c.out(1).dtype,
                                         .matrices = w.rows() / max(rows, 1),
                                         .rows = rows,
                                         .cols = w.last(),
                                         .block_rows = c.option(kBlock).integers[0],
                                         .block_cols = c.option(kBlock).integers[1],
                                         .floor = floor});
}

void quantize_fp4(Call& c) {
  enum { kX, kGroupSize = 0, kAmaxFloor };
  const TensorView& x = c.arg(kX);
  const int64_t group = c.integer(kGroupSize);
  const float floor = amax_floor(c, kAmaxFloor);
  require_even("the last dimension of x", x.last());
  require_even("group_size", group);
  c.make_outputs();
  c.run(quantize_fp4::kVariants, {.x = x.as_rows<const void>(),
                                  .dtype = x.dtype,
                                  .q = c.out(0).as<uint8_t>(),
                                  .scale = c.out(1).as<uint8_t>(),
                                  .rows = x.rows(),
                                  .dim = x.last(),
                                  .group = group,
                                  .floor = floor});
}

void dequantize(Call& c) {
  enum { kQ, kScale, kBlock = 0, kDtype };
  const TensorView &q = c.arg(kQ), &scale = c.arg(kScale);
  const auto dtype = static_cast<Dtype>(c.integer(kDtype));
  const int64_t rows = c.size("N"), block_cols = c.option(kBlock).integers[1];
  const bool fp4 = q.dtype == Dtype::u8;
  if (dtype != Dtype::f32 && dtype != Dtype::bf16)
    fail("dtype is not a dtype of results, expected torch.bfloat16 or torch.float32");
  if (fp4) require_even("block[1]", block_cols);
  c.make_outputs();
  c.run(dequantize::kVariants, {.q = q.as_rows<const uint8_t>(),
                                .fp4 = fp4,
                                .scale = scale.as_rows<const void>(),
                                .scale_dtype = scale.dtype,
                                .x = c.out(0).data,
                                .dtype = dtype,
                                .matrices = q.rows() / max(rows, 1),
                                .rows = rows,
                                .cols = c.size("K"),
                                .block_rows = c.option(kBlock).integers[0],
                                .block_cols = block_cols});
}

void sparsify_2to4(Call& c) {
  enum { kW, kImportance };
  const TensorView &w = c.arg(kW), &importance = c.arg(kImportance);
  if (w.last() % 4 != 0) fail("the last dimension of w is ", w.last(), ", expected a multiple of 4");
  c.make_outputs();
  c.run(sparsify_2to4::kVariants, {.w = w.as_rows<const void>(),
                                   .dtype = w.dtype,
                                   .importance = importance.data,
                                   .importance_dtype = importance.dtype,
                                   .values = c.out(0).data,
                                   .metadata = c.out(1).as<uint8_t>(),
                                   .rows = w.rows(),
                                   .dim = w.last()});
}

void swiglu(Call& c) {
  enum { kGateUp, kRowWeight, kLimit = 0 };
  const TensorView& gate_up = c.arg(kGateUp);
  const int64_t dim = half_of(gate_up);
  const float limit = limit_of(c, kLimit);
  c.make_outputs();
  c.run(swiglu::kVariants, {.gate_up = gate_up.as_rows<const void>(),
                            .dtype = gate_up.dtype,
                            .weight = c.arg(kRowWeight).as<const float>(),
                            .y = c.out(0).data,
                            .rows = gate_up.rows(),
                            .dim = dim,
                            .limit = limit});
}

void swiglu_quantize_fp8(Call& c) {
  enum { kGateUp, kRowWeight, kLimit = 0, kGroupSize, kScaleFormat, kAmaxFloor };
  const TensorView& gate_up = c.arg(kGateUp);
  const int64_t dim = half_of(gate_up);
  const float limit = limit_of(c, kLimit), floor = amax_floor(c, kAmaxFloor);
  c.make_outputs();
  c.run(swiglu_quantize_fp8::kVariants, {.gate_up = gate_up.as_rows<const void>(),
                                         .dtype = gate_up.dtype,
                                         .weight = c.arg(kRowWeight).as<const float>(),
                                         .q = c.out(0).as<uint8_t>(),
                                         .scale = c.out(1).data,
                                         .scale_dtype = c.out(1).dtype,
                                         .rows = gate_up.rows(),
                                         .dim = dim,
                                         .group = c.integer(kGroupSize),
                                         .limit = limit,
                                         .floor = floor});
}

void hadamard(Call& c) {
  enum { kX };
  const TensorView& x = c.arg(kX);
  const int64_t dim = x.last();
  if (dim < 1 || (dim & (dim - 1)) != 0) fail("the last dimension of x is ", dim, ", expected a power of two");
  c.make_outputs();
  c.run(hadamard::kVariants, {.x = x.as_rows<const void>(),
                              .dtype = x.dtype,
                              .y = c.out(0).data,
                              .scratch = c.floats(threads() * dim, dim > hadamard::kInShared ? x.rows() * dim : 0),
                              .rows = x.rows(),
                              .dim = dim});
}

void rms_norm(Call& c) {
  enum { kX, kWeight, kBias, kEps = 0 };
  const TensorView &x = c.arg(kX), &weight = c.arg(kWeight), &bias = c.arg(kBias);
  c.make_outputs();
  c.run(rms_norm::kVariants, {.x = x.as_rows<const void>(),
                              .dtype = x.dtype,
                              .weight = weight.data,
                              .weight_dtype = weight.dtype,
                              .bias = bias.data,
                              .bias_dtype = bias.dtype,
                              .y = c.out(0).data,
                              .rows = x.rows(),
                              .dim = x.last(),
                              .eps = c.real(kEps)});
}

void layer_norm(Call& c) {
  enum { kX, kWeight, kBias, kEps = 0 };
  const TensorView &x = c.arg(kX), &weight = c.arg(kWeight), &bias = c.arg(kBias);
  c.make_outputs();
  c.run(layer_norm::kVariants, {.x = x.as_rows<const void>(),
                                .dtype = x.dtype,
                                .weight = weight.data,
                                .weight_dtype = weight.dtype,
                                .bias = bias.data,
                                .bias_dtype = bias.dtype,
                                .y = c.out(0).data,
                                .rows = x.rows(),
                                .dim = x.last(),
                                .eps = c.real(kEps)});
}

constexpr Binding kBindings[] = {
    {"quantize_fp8", "x group_size scale_format amax_floor", &quantize_fp8},
    {"quantize_fp8_blocks", "w block scale_format amax_floor", &quantize_fp8_blocks},
    {"quantize_fp4", "x group_size amax_floor", &quantize_fp4},
    {"dequantize", "q scale block dtype", &dequantize},
    {"sparsify_2to4", "w importance", &sparsify_2to4},
    {"swiglu", "gate_up row_weight limit", &swiglu},
    {"swiglu_quantize_fp8", "gate_up row_weight limit group_size scale_format amax_floor", &swiglu_quantize_fp8},
    {"hadamard", "x", &hadamard},
    {"rms_norm", "x weight bias eps", &rms_norm},
    {"layer_norm", "x weight bias eps", &layer_norm},
};

}  // namespace

Family quant_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
