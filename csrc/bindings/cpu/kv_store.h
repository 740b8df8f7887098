// The block store of the tiered KV cache, for Python.
#pragma once
#include <pybind11/pybind11.h>

namespace sk {
void define_kv_store(pybind11::module_& m);
}
