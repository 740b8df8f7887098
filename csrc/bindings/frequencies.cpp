#include "bindings/frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sk {
namespace {

// The pair that turns `rotations` times over the original positions.
double pair_of(double rotations, double theta, int64_t pairs, const Yarn& y) {
  return static_cast<double>(pairs) * std::log(y.original_positions / (rotations * 2 * std::numbers::pi)) /
         std::log(theta);
}

}  // namespace

// Rounded to float32 after every step, as models are trained: at position 4096 an ulp is 2^-12 of a turn.
void rope_frequencies(double theta, int64_t pairs, const Yarn* yarn, float* frequency) {
  const auto dim = static_cast<float>(2 * pairs);
  double low = 0, high = 0;
  if (yarn != nullptr) {
    low = std::max(std::floor(pair_of(yarn->beta_fast, theta, pairs, *yarn)), 0.0);
    high = std::min(std::ceil(pair_of(yarn->beta_slow, theta, pairs, *yarn)), static_cast<double>(2 * pairs - 1));
    if (low == high) high += 0.001;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / dim;
    const auto period = static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
    frequency[i] = 1.0f / period;
    if (yarn == nullptr) continue;
    const float stretched = 1.0f / (static_cast<float>(yarn->factor) * period);
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    frequency[i] = stretched * (1.0f - kept) + frequency[i] * kept;
  }
  std::fill(frequency + pairs, frequency + round_up(pairs, 16), 0.0f);
}

}  // namespace sk
