// Bench probes: see csrc/probes/probes.h.
#pragma once
#include <pybind11/pybind11.h>

namespace sk {

void define_probes(pybind11::module_& m);

}  // namespace sk
