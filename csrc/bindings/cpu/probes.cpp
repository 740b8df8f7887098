#include "bindings/cpu/probes.h"

#include "bindings/tensor_caster.h"
#include "core/cpu_features.h"
#include "core/parallel.h"
#include "probes/probes.h"

namespace py = pybind11;

namespace sk {
namespace {

void run(const probes::Args& args) {
  const py::gil_scoped_release unlocked;
  const PlainFloats plain;
  pick(probes::kVariants).run(args);
}

void read_pass(const py::object& tensor) {
  TensorView t;
  if (!is_plain_tensor(tensor.ptr()) || !read_tensor(tensor.ptr(), &t) || !t.here || t.rank != 1 || t.stride[0] != 1)
    throw py::type_error("probe_read: expected a contiguous one-dimensional torch.Tensor on the CPU");
  run({.kind = probes::Kind::read, .data = t.data, .bytes = t.size() * size_of(t.dtype), .rounds = 0});
}

// Returns the operations that it did, a product and a sum being two.
double spin(probes::Kind kind, int64_t rounds) {
  run({.kind = kind, .data = nullptr, .bytes = 0, .rounds = rounds});
  const double products_a_lane = kind == probes::Kind::dot ? 2 : kind == probes::Kind::bytes ? 4 : 1;
  return 2.0 * 16 * products_a_lane * probes::kProductsARound * static_cast<double>(rounds) * threads();
}

}  // namespace

void define_probes(py::module_& m) {
  m.def("probe_read", &read_pass);
  m.def("probe_fma", [](int64_t rounds) { return spin(probes::Kind::fma, rounds); });
  m.def("probe_dot", [](int64_t rounds) { return spin(probes::Kind::dot, rounds); });
  m.def("probe_int8", [](int64_t rounds) { return spin(probes::Kind::bytes, rounds); });
}

}  // namespace sk
