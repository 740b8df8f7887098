// Hyper-connections.
#include <cmath>

#include "bindings/families.h"
#include "kernels/mhc_head/op.h"
#include "kernels/mhc_post/op.h"
#include "kernels/mhc_post_pre/op.h"
#include "kernels/mhc_pre/op.h"
#include "kernels/sinkhorn/op.h"

namespace sk {
namespace {

void require_streams(const char* what, int64_t n) {
  if (n < 1 || n > hyper::kMaxStreams) fail(what, " ", n, ", expected 1 to ", hyper::kMaxStreams);
}

float finite(const Call& c, const char* name, int option, bool negative = false) {
  const float value = c.real(option);
  if (!std::isfinite(value) || (!negative && value < 0))
    fail(name, " is ", c.option(option).real, ", expected a finite number", negative ? "" : ", 0 or more");
  return value;
}

int64_t iterations(const Call& c, int option) {
  constexpr int64_t kMost = 1000;
  if (c.integer(option) < 1 || c.integer(option) > kMost)
    fail("iters is ", c.integer(option), ", expected 1 to ", kMost);
  return c.integer(option);
}

hyper::Streams streams(const TensorView& x) {
  const int64_t n = x.shape[1];
  require_streams("the number of streams, x.shape[1], is", n);
  return {x.as_rows<const void>(), x.dtype, x.shape[0], n, x.shape[2]};
}

hyper::Mixer mixer(Call& c, const hyper::Streams& in, int fn, int scale, int base, int rms_eps, int eps) {
  const int64_t outputs = c.arg(fn).shape[0];
  const float norm_eps = finite(c, "rms_eps", rms_eps), weight_eps = finite(c, "eps", eps);
  return {.fn = c.arg(fn).as_rows<const float>(),
          .outputs = outputs,
          .scale = c.arg(scale).as<const float>(),
          .base = c.arg(base).as<const float>(),
          .rms_eps = norm_eps,
          .eps = weight_eps,
          .sums = c.floats(threads() * hyper::sums_floats(outputs), 0),
          .packed = in.tokens > hyper::kTile ? c.floats(hyper::packed_floats(in.n, in.dim, outputs), 0) : nullptr};
}

void sinkhorn(Call& c) {
  enum { kLogits };
  enum { kIters, kEps };
  const TensorView& logits = c.arg(kLogits);
  const int64_t n = logits.last(), iters = iterations(c, kIters);
  require_streams("the last dimension of logits is", n);
  const float eps = finite(c, "eps", kEps);
  c.make_outputs();
  c.run(sinkhorn::kVariants, {.logits = logits.as_rows<const float>(),
                              .out = c.out(0).as<float>(),
                              .matrices = logits.rows() / n,
                              .n = n,
                              .iters = iters,
                              .eps = eps});
}

// The options and results of mhc_pre, which are the last ones of mhc_post_pre.
hyper::Pre pre(Call& c, const hyper::Streams& in, const hyper::Mixer& mixer, int first_option, int first_out) {
  const int64_t iters = iterations(c, first_option);
  const float post_mult = finite(c, "post_mult", first_option + 1, true);
  c.make_outputs();
  return {.in = in,
          .mixer = mixer,
          .layer_in = c.out(first_out).data,
          .post = c.out(first_out + 1).as<float>(),
          .comb = c.out(first_out + 2).as<float>(),
          .iters = iters,
          .post_mult = post_mult};
}

void mhc_pre(Call& c) {
  enum { kX, kFn, kScale, kBase };
  enum { kIters, kPostMult, kRmsEps, kEps };
  const hyper::Streams in = streams(c.arg(kX));
  c.run(mhc_pre::kVariants, pre(c, in, mixer(c, in, kFn, kScale, kBase, kRmsEps, kEps), kIters, 0));
}

hyper::Post post(const Call& c) {
  enum { kY, kX, kPost, kComb };
  return {.y = c.arg(kY).as_rows<const void>(),
          .y_dtype = c.arg(kY).dtype,
          .in = streams(c.arg(kX)),
          .post = c.arg(kPost).as<const float>(),
          .comb = c.arg(kComb).as<const float>(),
          .out = nullptr};
}

void mhc_post(Call& c) {
  hyper::Post a = post(c);
  c.make_outputs();
  a.out = c.out(0).data;
  c.run(mhc_post::kVariants, a);
}

void mhc_post_pre(Call& c) {
  enum { kFn = 4, kScale, kBase };
  enum { kIters, kPostMult, kRmsEps, kEps };
  mhc_post_pre::Args a = {.post = post(c), .pre = {}};
  a.pre = pre(c, a.post.in, mixer(c, a.post.in, kFn, kScale, kBase, kRmsEps, kEps), kIters, 1);
  a.post.out = c.out(0).data;
  a.pre.in.x = {c.out(0).data, a.pre.in.dim};
  c.run(mhc_post_pre::kVariants, a);
}

void mhc_head(Call& c) {
  enum { kX, kFn, kScale, kBase };
  enum { kRmsEps, kEps };
  const hyper::Streams in = streams(c.arg(kX));
  const hyper::Mixer how = mixer(c, in, kFn, kScale, kBase, kRmsEps, kEps);
  c.make_outputs();
  c.run(mhc_head::kVariants, {.in = in, .mixer = how, .out = c.out(0).data});
}

constexpr Binding kBindings[] = {
    {"sinkhorn", "logits iters eps", &sinkhorn},
    {"mhc_pre", "x fn scale base iters post_mult rms_eps eps", &mhc_pre},
    {"mhc_post", "y x post comb", &mhc_post},
    {"mhc_post_pre", "y x post comb fn scale base iters post_mult rms_eps eps", &mhc_post_pre},
    {"mhc_head", "x fn scale base rms_eps eps", &mhc_head},
};

}  // namespace

Family hyper_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
