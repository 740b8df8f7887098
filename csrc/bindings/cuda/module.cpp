// sparsekern._cuda: one function per op that has a CUDA kernel. Loads on machines without a driver, and says so.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <sstream>

#include "bindings/cuda/device.h"
#include "bindings/dispatch.h"
#include "bindings/families.h"

namespace sk {
namespace {

// Ops with a binding for devices, and those whose kernel folder has a cuda.cu: CMakeLists.txt names them.
std::vector<std::string> kernels() {
  std::vector<std::string> names;
  for (const auto& [first, count] : {cuda_moe_family(), cuda_gemm_family()})
    for (int i = 0; i < count; ++i) names.emplace_back(first[i].name);
  std::istringstream folders(SK_CUDA_KERNELS);
  for (std::string name; folders >> name;)
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

}  // namespace
}  // namespace sk

PYBIND11_MODULE(_cuda, m) {
  using namespace sk;
  m.doc() = "CUDA kernels of sparsekern; use the functions of the package.";
  define_common(m, "cuda");
  m.def("trouble", &cuda::trouble, "Why no device can be used; empty where one can.");
  m.def("devices", [] {
    pybind11::list all;
    for (const cuda::Facts& d : cuda::devices())
      all.append(pybind11::make_tuple(d.name, d.major * 10 + d.minor, d.processors));
    return all;
  });
  m.attr("kernels") = pybind11::tuple(pybind11::cast(kernels()));
  m.attr("architectures") = SK_CUDA_ARCHS;
}
