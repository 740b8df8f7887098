#include "bindings/tensor_caster.h"

#include <pybind11/pybind11.h>
#include <sys/mman.h>

#include <cstdint>
#include <string>
#include <vector>

namespace py = pybind11;

namespace sk {
namespace {

// --- the parts of dlpack.h (DLPack 1.2) that are used, by its names
struct DLDevice { int32_t device_type, device_id; };
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensorVersioned {
  uint32_t major, minor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor dl_tensor;
};
struct DLPackExchangeAPI {
  uint32_t major, minor;
  void* prev_api;
  int (*managed_tensor_allocator)(DLTensor*, DLManagedTensorVersioned**, void*,
                                  void (*)(void*, const char*, const char*));
  int (*managed_tensor_from_py_object_no_sync)(void*, DLManagedTensorVersioned**);
  int (*managed_tensor_to_py_object_no_sync)(DLManagedTensorVersioned*, void**);
  int (*dltensor_from_py_object_no_sync)(void*, DLTensor*);
  int (*current_work_stream)(int32_t, int32_t, void**);
};
constexpr int32_t kCpu = 1, kCuda = 2;

constexpr DLDataType kDlpackOf[] = {
    // in the order of Dtype
    {2, 32, 1}, {4, 16, 1}, {10, 8, 1}, {14, 8, 1}, {1, 8, 1}, {0, 32, 1},
    {0, 64, 1}, {2, 16, 1}, {2, 64, 1}, {0, 8, 1},  {6, 8, 1},
};

// What is known of torch. Python objects are never released: the module lives as long as the interpreter.
struct Torch {
  const DLPackExchangeAPI* api = nullptr;
  const DLPackExchangeAPI* found = nullptr;
  int32_t device_type = kCpu;
  std::string device_name;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  py::handle module, empty, grad_enabled;
  PyObject* requires_grad = nullptr;
  std::vector<py::handle> dtypes;
} torch_;

Dtype from_dlpack(DLDataType t) {
  for (int i = 0; i < static_cast<int>(Dtype::other); ++i)
    if (kDlpackOf[i].code == t.code && kDlpackOf[i].bits == t.bits && t.lanes == 1) return static_cast<Dtype>(i);
  return Dtype::other;
}

bool read_by_exchange(PyObject* object, TensorView* out) {
  DLTensor t;
  if (torch_.api->dltensor_from_py_object_no_sync(object, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.ndim > TensorView::kMaxRank) return false;
  out->data = static_cast<char*>(t.data) + t.byte_offset;
  out->dtype = from_dlpack(t.dtype);
  out->rank = t.ndim;
  out->here = t.device.device_type == torch_.device_type;
  out->device = t.device.device_id;
  for (int i = 0; i < t.ndim; ++i) {
    out->shape[i] = t.shape[i];
    out->stride[i] = t.strides[i];
  }
  return t.data != nullptr || out->size() == 0;  // freed storage, and wrappers that have none
}

bool read_by_attributes(PyObject* object, TensorView* out) {
  try {
    const py::handle t(object);
    const auto shape = t.attr("shape").cast<py::tuple>();
    const auto stride = t.attr("stride")().cast<py::tuple>();
    if (shape.size() > TensorView::kMaxRank) return false;
    const py::object device = t.attr("device");
    out->here = device.attr("type").cast<std::string>() == torch_.device_name;
    out->device = device.attr("index").is_none() ? 0 : device.attr("index").cast<int>();
    out->data = PyLong_AsVoidPtr(t.attr("data_ptr")().ptr());
    out->dtype = dtype_of(t.attr("dtype").ptr());
    out->rank = static_cast<int>(shape.size());
    for (int i = 0; i < out->rank; ++i) {
      out->shape[i] = shape[i].cast<int64_t>();
      out->stride[i] = stride[i].cast<int64_t>();
    }
    return out->data != nullptr || out->size() == 0;
  } catch (const py::error_already_set&) {
    return false;
  }
}

void raise_from_dlpack(void*, const char* kind, const char* message) {
  PyErr_SetString(kind[0] == 'M' ? PyExc_MemoryError : PyExc_RuntimeError, message);
}

}  // namespace

void setup_tensors(PyObject* module, PyObject* dtypes, const char* device) {
  const auto torch = py::reinterpret_borrow<py::object>(module);
  torch_.device_name = device;
  torch_.device_type = torch_.device_name == "cpu" ? kCpu : kCuda;
  torch_.module = py::object(torch).release();
  torch_.tensor = reinterpret_cast<PyTypeObject*>(py::object(torch.attr("Tensor")).release().ptr());
  torch_.parameter = reinterpret_cast<PyTypeObject*>(py::object(torch.attr("nn").attr("Parameter")).release().ptr());
  torch_.empty = py::object(torch.attr("empty")).release();
  torch_.grad_enabled = py::object(torch.attr("is_grad_enabled")).release();
  torch_.requires_grad = PyUnicode_InternFromString("requires_grad");
  for (const py::handle d : py::reinterpret_borrow<py::tuple>(dtypes))
    torch_.dtypes.push_back(py::reinterpret_borrow<py::object>(d).release());
  const py::handle tensor(reinterpret_cast<PyObject*>(torch_.tensor));
  if (py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) PyErr_Clear();
    if (api != nullptr && api->major == 1 && api->dltensor_from_py_object_no_sync != nullptr) torch_.found = api;
  }
  torch_.api = torch_.found;
}

bool use_exchange_api(bool wanted) {
  torch_.api = wanted ? torch_.found : nullptr;
  return torch_.api != nullptr;
}

bool is_plain_tensor(PyObject* object) {
  return Py_TYPE(object) == torch_.tensor || Py_TYPE(object) == torch_.parameter;
}

bool requires_grad(PyObject* tensor) {
  const py::object wants = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, torch_.requires_grad));
  return wants.ptr() == Py_True && torch_.grad_enabled().ptr() == Py_True;
}

bool read_tensor(PyObject* tensor, TensorView* out) {
  return torch_.api != nullptr ? read_by_exchange(tensor, out) : read_by_attributes(tensor, out);
}

Dtype dtype_of(PyObject* torch_dtype) {
  for (size_t i = 0; i < torch_.dtypes.size(); ++i)
    if (torch_.dtypes[i].ptr() == torch_dtype) return static_cast<Dtype>(i);
  return Dtype::other;
}

void* current_stream(int device) {
  if (torch_.device_type == kCpu) return nullptr;
  void* stream = nullptr;
  if (torch_.api != nullptr && torch_.api->current_work_stream != nullptr) {
    if (torch_.api->current_work_stream(torch_.device_type, device, &stream) != 0) throw PythonError{};
    return stream;
  }
  const py::object current = torch_.module.attr("cuda").attr("current_stream")(device);
  return PyLong_AsVoidPtr(py::object(current.attr("cuda_stream")).ptr());
}

// Results so large that the allocator always asks the system for them lie on huge pages where it allows: a fault for
// every 4 KB takes several times as long as to write them. Smaller ones are memory that was used before.
static void prefer_huge_pages(const TensorView& t) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kAlwaysNew = 32 << 20, kHuge = 2 << 20;
  const auto bytes = static_cast<uintptr_t>(t.size() * size_of(t.dtype));
  if (bytes < kAlwaysNew) return;
  const auto first = reinterpret_cast<uintptr_t>(t.data), begin = (first + kHuge - 1) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(begin), (first + bytes) / kHuge * kHuge - begin, MADV_HUGEPAGE);
#endif
}

Object new_tensor(Dtype dtype, int rank, const int64_t* shape, int device, TensorView* view) {
  Object made;
  if (torch_.api != nullptr) {
    int64_t sizes[TensorView::kMaxRank];
    for (int i = 0; i < rank; ++i) sizes[i] = shape[i];
    DLTensor prototype{
        nullptr, {torch_.device_type, device}, rank, kDlpackOf[static_cast<int>(dtype)], sizes, nullptr, 0};
    DLManagedTensorVersioned* managed = nullptr;
    void* object = nullptr;
    if (torch_.api->managed_tensor_allocator(&prototype, &managed, nullptr, raise_from_dlpack) != 0 ||
        torch_.api->managed_tensor_to_py_object_no_sync(managed, &object) != 0)
      throw PythonError{};
    made = Object::owned(static_cast<PyObject*>(object));
  } else {
    py::tuple sizes(rank);
    for (int i = 0; i < rank; ++i) sizes[i] = shape[i];
    const std::string where = torch_.device_name + (torch_.device_type == kCpu ? "" : ":" + std::to_string(device));
    made = Object::owned(
        torch_.empty(sizes, py::arg("dtype") = torch_.dtypes[static_cast<size_t>(dtype)], py::arg("device") = where)
            .release()
            .ptr());
  }
  read_tensor(made.get(), view);
  if (torch_.device_type == kCpu) prefer_huge_pages(*view);
  return made;
}

}  // namespace sk
