#include "core/arena.h"
#include "core/parallel.h"
#include "kernels/gemm/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::gemm_groups::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "gemm/items.h"
#include "gemm/operand.h"

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
          store(out + j, one_nan(x), n);
        }
      }
    });
  });
}

}  // namespace

void run(const Args& a) {
  Scratch scratch;
  const gemm::Operand x = make_operand(a.weights, a.a, a.a_dtype, a.a_scale, a.a_group, a.rows, scratch);

  const auto rows_of = [&](int64_t g) { return a.groups[g].rows; };
  const Items items =
      make_items(a.group_count, ceil_div(a.weights.n, gemm::kPanel), a.blocking.item_rows, scratch, rows_of);
  const int64_t sums = items.most_rows * gemm::kPanel, per_worker = sums * 4 + gemm::kScratchBytes;
  uint8_t* const workers = scratch.take<uint8_t>(per_worker * threads());

  parallel_for(
      items.count(),
      [&](int64_t i, int worker) {
        const Items::Item item = find_item(items, i, rows_of);
        const int64_t row = a.groups[item.group].first_row + item.first_row;
        const int64_t column = item.block * gemm::kPanel, columns = min(gemm::kPanel, a.weights.n - column);
        float* const c = reinterpret_cast<float*>(workers + worker * per_worker);
        gemm::SK_ISA::multiply(a.weights.expert(a.groups[item.group].expert), rows_from(x, row), item.rows,
                               column / gemm::kLane, ceil_div(columns, gemm::kLane), c, gemm::kPanel,
                               reinterpret_cast<uint8_t*>(c + sums), a.blocking);
        finish(a, c, row, item.rows, column, columns);
      },
      worth_threads(a.blocking, a.rows * a.weights.n * a.weights.k));
}

}  // namespace sk::gemm_groups::SK_ISA
