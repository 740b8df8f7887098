// From a Python call to an op's binding: what sparsekern._C and sparsekern._cuda share.
#pragma once
namespace pybind11 {
class module_;
}

namespace sk {

// setup, define, set_trace, use_exchange_api, set_elsewhere.
void define_common(pybind11::module_& m, const char* default_device);

}  // namespace sk
