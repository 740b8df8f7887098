// How calls of a kind are cut: chosen in Python (sparsekern/plan.py) when the kind is met first, then kept here, so
// that a call pays for a look into a table.
#pragma once
#include "gemm/gemm.h"

namespace pybind11 {
class module_;
}

namespace sk {

enum class Planned : int64_t { gemm, grouped_gemm, grouped_gemm_masked, fused_moe };
inline constexpr const char* kPlannedNames[] = {"gemm", "grouped_gemm", "grouped_gemm_masked", "fused_moe"};

// The blocking for `rows` rows, of all groups together, that meet `groups` weights like w. Needs the interpreter's
// lock.
gemm::Blocking blocking_of(Planned op, const gemm::Weights& w, Dtype a, int64_t groups, int64_t rows);

// set_planner(f): f(op, a, weights, packed, block, n, k, groups, rows, threads, isa) -> the blocking's numbers.
// force_blocking(numbers or None): for every call, whatever the planner says. forget_plans(): ask again.
void define_plans(pybind11::module_& m);

}  // namespace sk
