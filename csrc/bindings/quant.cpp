// Quantisation, activation and normalisation.
#include "bindings/families.h"
#include "kernels/rms_norm/op.h"

namespace sk {
namespace {

void rms_norm(Call& c) {
  enum { kX, kWeight, kBias };
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
                              .eps = c.real(0)});
}

constexpr Binding kBindings[] = {
    {"rms_norm", "x weight bias eps", &rms_norm},
};

}  // namespace

Family quant_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
