#include "bindings/plan.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <unordered_map>

#include "core/cpu_features.h"
#include "core/parallel.h"
#include "core/variant.h"

namespace py = pybind11;

namespace sk {
namespace {

// What the speed of a call depends on.
using Kind = std::array<int64_t, 11>;
struct Hash {
  size_t operator()(const Kind& kind) const {
    uint64_t h = 0xcbf29ce484222325;
    for (const int64_t word : kind) h = (h ^ static_cast<uint64_t>(word)) * 0x100000001b3;
    return h ^ h >> 32;
  }
};
constexpr size_t kMost = 4096;  // kinds; a server meets a few hundred

// Guarded by the interpreter's lock.
std::unordered_map<Kind, gemm::Blocking, Hash> plans;
std::optional<gemm::Blocking> forced;
py::handle planner;  // lives as long as the interpreter

// Exact up to 8, then the nearest power of two: a server's number of rows changes with every step.
int64_t bucket(int64_t rows) {
  if (rows <= 8) return rows;
  int64_t power = 8;
  while (2 * power <= rows) power *= 2;
  return rows - power > power * 2 / 5 ? 2 * power : power;  // beyond 1.4 powers
}

gemm::Blocking as_blocking(const py::handle& numbers) {
  const auto [item_rows, decode_rows, prefetch, threads] =
      py::cast<std::tuple<int64_t, int64_t, int64_t, int64_t>>(numbers);
  // Whatever Python says, a call must survive it: scratch grows with the rows of an item.
  const auto within = [](int64_t x, int64_t low, int64_t high) { return max(low, min(high, x)); };
  return {within(item_rows, 16, 1024), max(decode_rows, 0), within(prefetch, 0, 1 << 16), max(threads, 0)};
}

gemm::Blocking ask(const Kind& kind) {
  if (!planner) return {};
  try {
    const auto [op, a, weights, packed, block, n, k, groups, rows, count, isa] = kind;
    return as_blocking(
        planner(kPlannedNames[op], a, weights, packed != 0, block, n, k, groups, rows, count, kIsaNames[isa]));
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("sparsekern.plan");  // a call is never lost for want of a plan
    return {};
  }
}

}  // namespace

gemm::Blocking blocking_of(Planned op, const gemm::Weights& w, Dtype a, int64_t groups, int64_t rows) {
  if (forced) return *forced;
  const Kind kind = {static_cast<int64_t>(op),
                     static_cast<int64_t>(a),
                     static_cast<int64_t>(w.format),
                     w.packed,
                     w.scale != nullptr ? w.block_k : 0,
                     w.n,
                     w.k,
                     groups,
                     bucket(rows),
                     threads(),
                     static_cast<int64_t>(active_isa())};
  if (const auto found = plans.find(kind); found != plans.end()) return found->second;
  const gemm::Blocking blocking = ask(kind);
  if (plans.size() >= kMost) plans.clear();
  plans.emplace(kind, blocking);
  return blocking;
}

void define_plans(py::module_& m) {
  m.def("set_planner", [](py::object f) {
    planner = f.is_none() ? py::handle() : f.release();
    plans.clear();
  });
  m.def("force_blocking", [](const py::object& numbers) {
    forced = numbers.is_none() ? std::nullopt : std::optional(as_blocking(numbers));
  });
  m.def("forget_plans", [] { plans.clear(); });
}

}  // namespace sk
