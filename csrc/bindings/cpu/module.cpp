// sparsekern._C: one function per op, and the few switches of sparsekern.config.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cpu/kv_store.h"
#include "bindings/cpu/probes.h"
#include "bindings/dispatch.h"
#include "bindings/plan.h"
#include "core/cpu_features.h"
#include "core/parallel.h"

PYBIND11_MODULE(_C, m) {
  using namespace sk;
  m.doc() = "Compiled kernels of sparsekern; use the functions of the package.";
  define_common(m, "cpu");

  m.def("isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i <= static_cast<int>(best_isa()); ++i) names.emplace_back(kIsaNames[i]);
    return names;
  });
  m.def("isa", [] { return kIsaNames[static_cast<int>(active_isa())]; });
  m.def("cap_isa", [](int highest) { cap_isa(static_cast<Isa>(highest)); });
  m.def("threads", &threads);
  m.def("limit_threads", &limit_threads);
  define_probes(m);
  define_kv_store(m);
  define_plans(m);
  m.attr("compiler") = __VERSION__;
}
