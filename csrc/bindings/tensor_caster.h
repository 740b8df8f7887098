// torch tensors as TensorView and back, without torch's headers: through the C functions that torch publishes as
// torch.Tensor.__dlpack_c_exchange_api__ (DLPack 1.2), or, on older torch, by reading attributes.
#pragma once
#include "bindings/object.h"
#include "core/tensor_view.h"

namespace sk {

// Finds the exchange API. dtypes: the torch dtype of each Dtype, in order. device: the kind that this module serves.
void setup_tensors(PyObject* torch, PyObject* dtypes, const char* device);
bool use_exchange_api(bool wanted);  // returns whether it is used; for tests of the fallback

// Whether the object is exactly torch.Tensor or torch.nn.Parameter: only then is its memory what it seems.
bool is_plain_tensor(PyObject* object);
// Whether results would have to carry gradients: grad mode is on, and the tensor asks for them.
bool requires_grad(PyObject* tensor);
// False where the tensor has no memory to read (or too many dimensions); no Python error is left behind.
bool read_tensor(PyObject* tensor, TensorView* out);
// A new tensor on one of the devices; throws PythonError.
Object new_tensor(Dtype dtype, int rank, const int64_t* shape, int device, TensorView* view);
// torch's current stream of a device; null on CPUs.
void* current_stream(int device);
// The Dtype of a torch.dtype, Dtype::other where it has none here.
Dtype dtype_of(PyObject* torch_dtype);

}  // namespace sk
