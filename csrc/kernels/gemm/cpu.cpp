#include "core/arena.h"
#include "core/parallel.h"
#include "kernels/gemm/op.h"
#include "simd/isa.h"

namespace sk::gemm_groups::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "gemm/operand.h"

// Rows of one item: their sums (64 columns of f32) stay in the second-level cache.
constexpr int64_t kRowsPerItem = 256;

void finish(const Args& a, const float* c, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  with_float_type(a.out_dtype, [&](auto out_type) {
    with_float_type(a.bias_dtype, [&](auto bias_type) {
      const auto* bias = static_cast<const decltype(bias_type)*>(a.bias);
      for (int64_t r = 0; r < rows; ++r) {
        auto* out = static_cast<decltype(out_type)*>(a.out) + (row + r) * a.weights.n + column;
        for (int64_t j = 0; j < columns; j += kLanes) {
          const int64_t n = min(kLanes, columns - j);
          F32 x = load(c + r * gemm::kPanel + j);
          if (bias != nullptr) x = add(x, load(bias + column + j, n));
          store(out + j, x, n);
        }
      }
    });
  });
}

}  // namespace

void run(const Args& a) {
  Scratch scratch;
  const gemm::Operand x = make_operand(a.weights, a.a, a.a_dtype, a.a_scale, a.a_group, a.rows, scratch);

  // Items: the panels of every expert, and of each the rows in parts; a panel's parts lie next to each other, so that
  // the panel is read from memory once.
  const int64_t panels = ceil_div(a.weights.n, gemm::kPanel);
  int64_t* const first_item = scratch.take<int64_t>(a.group_count + 1);
  int64_t most_rows = 0;
  first_item[0] = 0;
  for (int64_t g = 0; g < a.group_count; ++g) {
    first_item[g + 1] = first_item[g] + panels * ceil_div(a.groups[g].rows, kRowsPerItem);
    most_rows = max(most_rows, min(kRowsPerItem, a.groups[g].rows));
  }
  const int64_t sums = most_rows * gemm::kPanel, per_worker = sums * 4 + gemm::kScratchBytes;
  uint8_t* const workers = scratch.take<uint8_t>(per_worker * threads());

  parallel_for(first_item[a.group_count], [&](int64_t item, int worker) {
    int64_t g = 0, past = a.group_count;  // the last group that starts at or before the item: never an empty one
    while (past - g > 1) {
      const int64_t middle = (g + past) / 2;
      (first_item[middle] <= item ? g : past) = middle;
    }
    const Group& group = a.groups[g];
    const int64_t parts = ceil_div(group.rows, kRowsPerItem), local = item - first_item[g];
    const int64_t panel = local / parts, part = local % parts;
    const int64_t first = group.rows * part / parts, rows = group.rows * (part + 1) / parts - first;
    const int64_t column = panel * gemm::kPanel, columns = min(gemm::kPanel, a.weights.n - column);

    float* const c = reinterpret_cast<float*>(workers + worker * per_worker);
    gemm::Operand mine = x;
    const int64_t row = group.first_row + first;
    mine.data = static_cast<const uint8_t*>(x.data) + row * x.stride * (x.is_f32 ? 4 : 2);
    if (x.scale != nullptr) mine.scale = x.scale + row * x.scale_stride;
    gemm::SK_ISA::multiply(a.weights.expert(group.expert), mine, rows, column / gemm::kLane,
                           ceil_div(columns, gemm::kLane), c, gemm::kPanel, reinterpret_cast<uint8_t*>(c + sums));
    finish(a, c, row, rows, column, columns);
  });
}

}  // namespace sk::gemm_groups::SK_ISA
