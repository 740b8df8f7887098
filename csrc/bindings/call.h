// One call of one op: reads the arguments, checks them against the schema, makes the results, runs a variant.
//
// The check here is the quick one: it says yes or no. On "no" the arguments go to sparsekern.backend.explain, which
// binds the schema again in Python and raises a message that names the op, the argument, what came and what was
// expected. Values (ids, ranges of options) are checked by the op's own binding with fail(), before any write.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "bindings/object.h"
#include "bindings/schema.h"
#include "core/arena.h"
#include "core/cpu_features.h"
#include "core/parallel.h"
#include "core/tensor_view.h"
#if defined(SK_CUDA)
#include "bindings/cuda/device.h"
#include "bindings/tensor_caster.h"
#endif

namespace sk {

struct OptionValue {
  bool present = false;
  int64_t integer = 0;  // also of bool, choice (its position) and dtype
  double real = 0;
  int count = 0;
  int64_t integers[8];  // the first `count`
};

struct Refused {  // the schema does not fit; Python will say why
  const char* reason;
};
inline constexpr const char* kElsewhere = "device";  // a tensor is on a device that another module serves
struct BadValue {  // a value is wrong; complete but for the op's name
  std::string message;
};

// fail("top_k is ", 9, ", expected 1 to ", experts)
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string message;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>)
      message += std::to_string(part);
    else
      message += part;
  };
  (add(parts), ...);
  throw BadValue{message};
}

inline bool is_empty(const TensorView& t) {  // also where the product of its dimensions is too large
  for (int i = 0; i < t.rank; ++i)
    if (t.shape[i] == 0) return true;
  return false;
}

class Call {
 public:
  explicit Call(const Schema& schema);
  static bool can_hold(const Schema& schema);

  void read(PyObject* const* values);  // args, options, out

  const TensorView& arg(int i) const { return args_[i]; }
  const OptionValue& option(int i) const { return options_[i]; }
  int64_t integer(int i) const { return options_[i].integer; }
  bool flag(int i) const { return options_[i].integer != 0; }
  float real(int i) const { return static_cast<float>(options_[i].real); }
  // A size that the schema names; -1 where it is not known.
  int64_t size(const char* symbol) const;
  // An index tensor as contiguous int32 whichever it came in; what int32 cannot hold becomes INT32_MIN.
  const int32_t* indices(int i);
  Scratch& scratch() { return scratch_; }
  float* floats(int64_t on_cpu, int64_t on_device);  // scratch for the kernel

  void set_size(const char* symbol, int64_t value);  // one that is known from values only
  void make_outputs();
  bool out_given() const { return out_ != Py_None; }
  const TensorView& out(int i) const { return outs_[i]; }

#if !defined(SK_CUDA)
  // Runs the first variant that this machine can run, without the interpreter's lock.
  template <class Args, int N>
  void run(const Variant<Args> (&rows)[N], const Args& args) {
    const Variant<Args>& row = pick(rows);
    implementation_ = row.name;
    if (outputs_made_ && writes_nothing()) return;  // rows of no columns may be 2^62
    const Unlocked unlocked;
    const PlainFloats plain;
    row.run(args);
  }
  static constexpr bool kReadsValues = true;
#else
  // Queues the op's kernels on torch's current stream.
  template <class Args, int N>
  void run(const Variant<Args> (&rows)[N], const Args& args) {
    if (rows[0].run == nullptr) throw Refused{"no kernel"};
    implementation_ = rows[0].name;
    const cuda::OnDevice device(device_);
    rows[0].run(args, current_stream(device_));
    cuda::check_launch();
  }
  static constexpr bool kReadsValues = false;  // of tensors: that would wait for the device
  // Memory on the device that is free once the work queued so far and by this call is done.
  void* device_scratch(int64_t bytes);
  void zero_output(int i);
  const float* scales_on_device(int i);  // of e8m0, as contiguous floats
#endif
  const char* implementation() const { return implementation_; }
  Object result();

 private:
  void read_tensor_arg(int i, PyObject* value);
  bool writes_nothing() const;  // neither results nor arguments
  void check_written() const;
  void read_option(int i, PyObject* value);
  void bind_sizes();
  static const ShapeSpec& form_of(const ArgSpec& spec, const TensorView& t);
  static bool doubled(const ArgSpec& spec, const ShapeSpec& form, const TensorView& t, int axis);
  bool fits(const ArgSpec& spec, const TensorView& t);
  int64_t evaluate(const Term& term) const;
  int symbol(const char* name) const;
  Dtype dtype_of_option(int i) const;
  Dtype out_dtype(const OutSpec& spec) const;
  void take_output(size_t i, PyObject* value, Dtype dtype, int rank, const int64_t* shape);

  static constexpr int kMax = 24;  // of arguments, of options, of results; sizes: twice that

  const Schema& schema_;
  int device_ = -1;
  TensorView args_[kMax], outs_[kMax];
  OptionValue options_[kMax];
  int64_t sizes_[2 * kMax];
  const TensorView* batch_ = nullptr;  // whose leading dimensions count
  int batch_rank_ = 0;
  PyObject* out_ = nullptr;
  bool outputs_made_ = false;
  Object results_[kMax];
  std::vector<Object> kept_;  // until the call ends: torch's allocator then reuses it in stream order
  Scratch scratch_;
  const char* implementation_ = "";
};

// What a binding file offers to module.cpp.
struct Binding {
  const char* name;
  const char* arguments;  // names of tensors and options in order, checked against the schema
  void (*run)(Call&);
};

}  // namespace sk
