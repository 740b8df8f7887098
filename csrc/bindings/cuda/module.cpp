// sparsekern._cuda: one function per op that has a CUDA kernel. Loads on machines without a driver, and says so.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>

#include "bindings/cuda/device.h"
#include "bindings/dispatch.h"

namespace sk {
namespace {

// Ops whose kernel folder has a cuda.cu, as CMakeLists.txt names them, and those that share such a kernel.
std::vector<std::string> kernels() {
  std::vector<std::string> names;
  std::istringstream folders(SK_CUDA_KERNELS);
  for (std::string name; folders >> name;) {
    names.push_back(name);
    if (name == "gemm") names.insert(names.end(), {"grouped_gemm", "grouped_gemm_masked"});
    if (name == "sparse_attention") names.push_back("sparse_mla_prefill");
    if (name == "indexer_logits" || name == "indexer_topk") names.push_back(name + "_paged");
  }
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
