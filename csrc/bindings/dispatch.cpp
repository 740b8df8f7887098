// From a Python call to an op's binding: what sparsekern._C and sparsekern._cuda share.
#include "bindings/dispatch.h"

#include <pybind11/pybind11.h>

#include <chrono>
#include <map>
#include <memory>

#include "bindings/families.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace sk {
namespace {

using Clock = std::chrono::steady_clock;

// Python objects that live as long as the interpreter.
struct Hooks { py::handle explain, shape_error, trace; } hooks;

struct Kernel {
  Schema schema;
  const Binding* binding;
  PyMethodDef method;
  py::object elsewhere;  // the same op's function for tensors on another device
};
std::map<std::string, Kernel*> kernels;  // they live as long as the interpreter

// Lets Python say what is wrong with the arguments, or serve them if they are fine but not plain CPU tensors.
PyObject* explain(const Kernel& k, PyObject* const* values, Py_ssize_t count, const char* reason) {
  try {
    py::tuple all(count);
    for (Py_ssize_t i = 0; i < count; ++i) all[i] = py::handle(values[i]);
    return hooks.explain(k.schema.name, all, reason).release().ptr();
  } catch (py::error_already_set& e) {
    e.restore();
    return nullptr;
  }
}

PyObject* invoke(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  const auto& k = *static_cast<const Kernel*>(PyCapsule_GetPointer(self, nullptr));
  if (count != static_cast<Py_ssize_t>(k.schema.args.size() + k.schema.options.size() + 1)) {
    PyErr_Format(PyExc_TypeError, "%s: got %zd arguments", k.schema.name.c_str(), count);
    return nullptr;
  }
  try {
    const auto start = hooks.trace ? Clock::now() : Clock::time_point();
    Call call(k.schema);
    call.read(values);
    k.binding->run(call);
    if (hooks.trace)
      hooks.trace(k.schema.name, call.implementation(), std::chrono::duration<double>(Clock::now() - start).count());
    return call.result().release();
  } catch (const Refused& r) {
    if (r.reason == kElsewhere && k.elsewhere)
      return PyObject_Vectorcall(k.elsewhere.ptr(), values, static_cast<size_t>(count), nullptr);
    return explain(k, values, count, r.reason);
  } catch (const BadValue& e) {
    PyErr_SetString(hooks.shape_error.ptr(), (k.schema.name + ": " + e.message).c_str());
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const PythonError&) {
  } catch (const std::bad_alloc&) {
    PyErr_Format(PyExc_MemoryError, "%s: no memory for scratch", k.schema.name.c_str());
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

// Names in the schema must be those that the binding was written for, in its order.
void check_names(const Schema& schema, const Binding& binding) {
  std::string names;
  for (const ArgSpec& a : schema.args) names += a.name + " ";
  for (const OptionSpec& o : schema.options) names += o.name + " ";
  if (!Call::can_hold(schema))
    throw std::logic_error(schema.name + ": more arguments, options or sizes than Call holds");
  if (names != std::string(binding.arguments) + " ")
    throw std::logic_error(schema.name + ": the schema says '" + names + "', the binding '" + binding.arguments +
                           "'");
}

}  // namespace

py::object define(const py::tuple& record) {
  auto kernel = std::make_unique<Kernel>(Kernel{Schema(record.ptr()), nullptr, {}, {}});
  for (const auto& [first, count] : families())
    for (const Binding* b = first; b != first + count; ++b)
      if (kernel->binding == nullptr && kernel->schema.name == b->name) kernel->binding = b;
  if (kernel->binding == nullptr) throw std::logic_error("no binding for op " + kernel->schema.name);
  check_names(kernel->schema, *kernel->binding);
  Kernel* k = kernel.release();
  kernels[k->schema.name] = k;
  k->method = {k->schema.name.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&invoke)),
               METH_FASTCALL, nullptr};
  const py::capsule self(k, static_cast<const char*>(nullptr));
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&k->method, self.ptr(), nullptr));
}

void define_common(py::module_& m, const char* default_device) {
  m.def(
      "setup",
      [](const py::object& torch, const py::tuple& dtypes, py::object explain, py::object shape_error,
         const std::string& device) {
        setup_tensors(torch.ptr(), dtypes.ptr(), device.c_str());
        hooks.explain = explain.release();
        hooks.shape_error = shape_error.release();
      },
      py::arg("torch"), py::arg("dtypes"), py::arg("explain"), py::arg("shape_error"),
      py::arg("device") = default_device);
  m.def("define", &define, "Hand over an op's record; returns the function that runs it.");
  m.def("set_trace",
        [](py::object callback) { hooks.trace = callback.is_none() ? py::handle() : callback.release(); });
  m.def("use_exchange_api", &use_exchange_api);
  m.def(
      "set_elsewhere",
      [](const std::string& op, py::object function) { kernels.at(op)->elsewhere = std::move(function); },
      "The function that serves an op's calls with tensors on another device.");
}

}  // namespace sk
