// From a Python call to an op's binding: what sparsekern._C and sparsekern._cuda share.
#pragma once
#include <pybind11/pybind11.h>

namespace sk {

// setup, define, set_trace, use_exchange_api, set_elsewhere.
void define_common(pybind11::module_& m, const char* default_device);

}  // namespace sk
