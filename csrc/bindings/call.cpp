#include "bindings/call.h"

#include "bindings/tensor_caster.h"

namespace sk {
namespace {

constexpr int64_t kUnknown = -1;

// The power of two g with ceil(size / g) == blocks, 0 if there is none. Twin of schema.block_size.
int64_t block_size(int64_t size, int64_t blocks) {
  int64_t g = 1;
  while (ceil_div(size, g) > max(blocks, 1)) g *= 2;
  return ceil_div(size, g) == blocks || size == 0 ? g : 0;
}

bool is_dense(const TensorView& t) {
  if (is_empty(t)) return true;
  int64_t expected = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.stride[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

bool is_rows(const TensorView& t) {
  if (t.rank == 0 || is_empty(t)) return true;
  if (t.last() > 1 && t.stride[t.rank - 1] != 1) return false;
  int64_t expected = kUnknown;
  for (int i = t.rank - 2; i >= 0; --i) {
    if (t.shape[i] <= 1) continue;
    if (expected != kUnknown && t.stride[i] != expected) return false;
    expected = t.stride[i] * t.shape[i];
  }
  return true;
}

struct Span {
  const char *first, *last;  // half open
};
Span span_of(const TensorView& t) {
  const char* p = t.as<const char>();
  int64_t low = 0, high = 1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return {p, p};
    const int64_t reach = (t.shape[i] - 1) * t.stride[i];
    (reach < 0 ? low : high) += reach;
  }
  return {p + low * size_of(t.dtype), p + high * size_of(t.dtype)};
}
bool overlap(const TensorView& a, const TensorView& b) {
  const Span x = span_of(a), y = span_of(b);
  return x.first < y.last && y.first < x.last;
}
bool same_memory(const TensorView& a, const TensorView& b) {
  bool same = a.data == b.data && a.dtype == b.dtype && a.rank == b.rank;
  for (int i = 0; same && i < a.rank; ++i) same = a.shape[i] == b.shape[i] && a.stride[i] == b.stride[i];
  return same;
}

}  // namespace

Call::Call(const Schema& schema) : schema_(schema) {
  for (int i = 0; i < schema.symbols(); ++i) sizes_[i] = kUnknown;
}

bool Call::can_hold(const Schema& s) {
  return s.args.size() <= kMax && s.options.size() <= kMax && s.outs.size() <= kMax && s.symbols() <= 2 * kMax;
}

int Call::symbol(const char* name) const {
  for (int i = 0; i < schema_.symbols(); ++i)
    if (schema_.symbol_names[static_cast<size_t>(i)] == name) return i;
  fail("no size is called ", name);
}
int64_t Call::size(const char* name) const { return sizes_[symbol(name)]; }
void Call::set_size(const char* name, int64_t value) { sizes_[symbol(name)] = value; }

void Call::read(PyObject* const* values) {
  for (size_t i = 0; i < schema_.options.size(); ++i)
    read_option(static_cast<int>(i), values[schema_.args.size() + i]);
  for (size_t i = 0; i < schema_.args.size(); ++i) read_tensor_arg(static_cast<int>(i), values[i]);
  check_written();
  out_ = values[schema_.args.size() + schema_.options.size()];
  bind_sizes();
}

void Call::read_tensor_arg(int i, PyObject* value) {
  const ArgSpec& spec = schema_.args[static_cast<size_t>(i)];
  TensorView& t = args_[i];
  if (value == Py_None) {
    if (!spec.optional) throw Refused{"missing argument"};
    return;
  }
  if (!is_plain_tensor(value)) throw Refused{"not a plain tensor"};
  if (!read_tensor(value, &t)) throw Refused{"unreadable tensor"};
  if (!t.here) throw Refused{kElsewhere};
  if (device_ >= 0 && t.device != device_) throw Refused{"devices"};
  device_ = t.device;
  if (t.dtype == Dtype::other || !(spec.dtypes >> static_cast<int>(t.dtype) & 1)) throw Refused{"dtype"};
  if (!(spec.dense ? is_dense(t) : is_rows(t))) throw Refused{"strides"};
  if (requires_grad(value)) throw Refused{"requires grad"};
}

void Call::check_written() const {
  for (size_t i = 0; i < schema_.args.size(); ++i)
    for (size_t j = 0; j < schema_.args.size() && schema_.args[i].written && args_[i].present(); ++j)
      if (j != i && args_[j].present() && overlap(args_[i], args_[j]) && !same_memory(args_[i], args_[j]))
        throw Refused{"a written argument overlaps another"};
}

bool Call::writes_nothing() const {
  for (size_t i = 0; i < schema_.outs.size(); ++i)
    if (outs_[i].present() && !is_empty(outs_[i])) return false;
  for (size_t i = 0; i < schema_.args.size(); ++i)
    if (schema_.args[i].written && args_[i].present() && !is_empty(args_[i])) return false;
  return true;
}

void Call::read_option(int i, PyObject* value) {
  const OptionSpec& spec = schema_.options[static_cast<size_t>(i)];
  OptionValue& o = options_[i];
  if (value == Py_None) {
    if (!spec.nullable) throw Refused{"option is None"};
    return;
  }
  o.present = true;
  switch (spec.kind) {
    case OptionKind::integer:
      if (!PyLong_Check(value) || PyBool_Check(value)) throw Refused{"option type"};
      o.integer = PyLong_AsLongLong(value);
      break;
    case OptionKind::real:
      if (!PyFloat_Check(value) && (!PyLong_Check(value) || PyBool_Check(value))) throw Refused{"option type"};
      o.real = PyFloat_AsDouble(value);
      break;
    case OptionKind::boolean:
      if (!PyBool_Check(value)) throw Refused{"option type"};
      o.integer = value == Py_True;
      break;
    case OptionKind::choice:
      if (!PyUnicode_Check(value)) throw Refused{"option type"};
      o.integer = -1;
      for (size_t c = 0; c < spec.choices.size() && o.integer < 0; ++c)
        if (value == spec.choices[c].get() || PyUnicode_Compare(value, spec.choices[c].get()) == 0)
          o.integer = static_cast<int64_t>(c);
      if (o.integer < 0) throw Refused{"choice"};
      break;
    case OptionKind::dtype:
      o.integer = static_cast<int64_t>(dtype_of(value));
      if (o.integer == static_cast<int64_t>(Dtype::other)) throw Refused{"dtype option"};
      break;
    case OptionKind::integers:
      if (!PyTuple_Check(value) && !PyList_Check(value)) throw Refused{"option type"};
      o.count = static_cast<int>(PySequence_Fast_GET_SIZE(value));
      if (o.count != static_cast<int>(spec.symbols.size())) throw Refused{"option length"};
      for (int j = 0; j < o.count; ++j) {
        PyObject* item = PySequence_Fast_GET_ITEM(value, j);
        if (!PyLong_Check(item) || PyBool_Check(item)) throw Refused{"option type"};
        o.integers[j] = PyLong_AsLongLong(item);
      }
      break;
  }
  if (PyErr_Occurred() != nullptr) {  // an integer of more than 64 bits
    PyErr_Clear();
    throw Refused{"option range"};
  }
  if (spec.kind == OptionKind::integer) sizes_[spec.symbols[0]] = o.integer;
  if (spec.kind == OptionKind::integers)
    for (int j = 0; j < o.count; ++j) {
      if (spec.shown && o.integers[j] < 1) throw Refused{"option range"};
      sizes_[spec.symbols[static_cast<size_t>(j)]] = o.integers[j];
    }
}

// First every size that stands alone in some shape, then the terms made of them. Twin of Op.bind.
void Call::bind_sizes() {
  for (size_t i = 0; i < schema_.args.size(); ++i) {
    const TensorView& t = args_[i];
    if (!t.present()) continue;
    const ArgSpec& spec = schema_.args[i];
    const ShapeSpec& form = form_of(spec, t);
    const int lead = t.rank - static_cast<int>(form.terms.size());
    if (form.batched && batch_ == nullptr) {
      batch_ = &t;
      batch_rank_ = lead;
    }
    for (int j = lead; j < t.rank; ++j) {
      const Term& term = form.terms[static_cast<size_t>(j - lead)];
      if (term.size() != 1 || term[0].kind != Token::kSymbol || sizes_[term[0].value] != kUnknown) continue;
      sizes_[term[0].value] = t.shape[j] << doubled(spec, form, t, j);
    }
  }
  for (size_t i = 0; i < schema_.args.size(); ++i)
    if (args_[i].present() && !fits(schema_.args[i], args_[i])) throw Refused{"shape"};
}

const ShapeSpec& Call::form_of(const ArgSpec& spec, const TensorView& t) {
  for (const ShapeSpec& form : spec.forms) {
    const int lead = t.rank - static_cast<int>(form.terms.size());
    if (lead == 0 || (lead > 0 && form.batched)) return form;
  }
  throw Refused{"rank"};
}

// Whether bytes of that dimension hold two elements.
bool Call::doubled(const ArgSpec& spec, const ShapeSpec& form, const TensorView& t, int axis) {
  return spec.packed && t.dtype == Dtype::u8 && axis == t.rank - 1 && form.terms.size() > 1;
}

bool Call::fits(const ArgSpec& arg, const TensorView& t) {
  const ShapeSpec& spec = form_of(arg, t);
  const int lead = t.rank - static_cast<int>(spec.terms.size());
  if (spec.batched) {
    if (lead != batch_rank_) return false;
    for (int j = 0; j < lead; ++j)
      if (t.shape[j] != batch_->shape[j]) return false;
  }
  for (int j = lead; j < t.rank; ++j) {
    const Term& term = spec.terms[static_cast<size_t>(j - lead)];
    const int64_t got = t.shape[j] << doubled(arg, spec, t, j);
    // "N/g" with g unknown: the scale's shape tells the block size.
    if (term.size() > 2 && term.back().kind == Token::kCeilDiv) {
      const Token& by = term[term.size() - 2];
      if (by.kind == Token::kSymbol && sizes_[by.value] == kUnknown) {
        const int64_t g = block_size(evaluate(Term(term.begin(), term.end() - 2)), got);
        if (g == 0) return false;
        sizes_[by.value] = g;
      }
    }
    if (evaluate(term) != got) return false;
  }
  return true;
}

int64_t Call::evaluate(const Term& term) const {
  int64_t stack[8];
  int n = 0;
  for (const Token& t : term) {
    if (t.kind == Token::kConst) {
      stack[n++] = t.value;
    } else if (t.kind == Token::kSymbol) {
      if (sizes_[t.value] == kUnknown) return kUnknown - 1;
      stack[n++] = sizes_[t.value];
    } else {
      const int64_t b = stack[--n], a = stack[n - 1];
      int64_t r;  // or more than any tensor has
      if (t.kind == Token::kCeilDiv && b <= 0) throw Refused{"division by an option that is not positive"};
      stack[n - 1] = t.kind == Token::kAdd   ? (__builtin_add_overflow(a, b, &r) ? INT64_MAX : r)
                     : t.kind == Token::kSub ? (__builtin_sub_overflow(a, b, &r) ? INT64_MIN : r)
                     : t.kind == Token::kMul ? (__builtin_mul_overflow(a, b, &r) ? INT64_MAX : r)
                                             : ceil_div(a, b);
    }
  }
  return stack[0];
}

const int32_t* Call::indices(int i) {
  const TensorView& t = args_[i];
  const int64_t cols = t.last(), rows = t.rank > 0 ? t.rows() : 1;
  if (is_empty(t) || (t.dtype == Dtype::i32 && (t.row_stride() == cols || rows <= 1))) return t.as<const int32_t>();
#if defined(SK_CUDA)
  auto* const on_device = static_cast<int32_t*>(device_scratch(rows * cols * size_of(Dtype::i32)));
  const cuda::OnDevice device(device_);
  cuda::to_int32(t.data, t.dtype == Dtype::i64, rows, cols, t.row_stride(), on_device, current_stream(device_));
  cuda::check_launch();
  return on_device;
#else
  int32_t* copy = scratch_.take<int32_t>(rows * cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t at = r * t.row_stride() + c;
      const int64_t v = t.dtype == Dtype::i32 ? t.as<const int32_t>()[at] : t.as<const int64_t>()[at];
      copy[r * cols + c] = v == static_cast<int32_t>(v) ? static_cast<int32_t>(v) : INT32_MIN;
    }
  return copy;
#endif
}

float* Call::floats(int64_t on_cpu, int64_t on_device) {
#if defined(SK_CUDA)
  (void)on_cpu;
  return on_device == 0 ? nullptr : static_cast<float*>(device_scratch(on_device * size_of(Dtype::f32)));
#else
  (void)on_device;
  return scratch_.take<float>(on_cpu);
#endif
}

#if defined(SK_CUDA)
void* Call::device_scratch(int64_t bytes) {
  TensorView memory;
  const int64_t size = max(bytes, 1);
  kept_.push_back(new_tensor(Dtype::u8, 1, &size, device_, &memory));
  return memory.data;
}

void Call::zero_output(int i) {
  const cuda::OnDevice device(device_);
  cuda::fill_zeros(outs_[i].data, outs_[i].size() * size_of(outs_[i].dtype), current_stream(device_));
}

const float* Call::scales_on_device(int i) {
  const TensorView& t = args_[i];
  auto* const scales = static_cast<float*>(device_scratch(t.size() * size_of(Dtype::f32)));
  const cuda::OnDevice device(device_);
  cuda::widen_scales(t.as<const uint8_t>(), t.rows(), t.last(), t.row_stride(), scales, current_stream(device_));
  cuda::check_launch();
  return scales;
}
#endif

// The dtype that an option names; other: it names none.
Dtype Call::dtype_of_option(int i) const {
  const OptionValue& o = options_[i];
  if (!o.present) return Dtype::other;
  const OptionSpec& spec = schema_.options[static_cast<size_t>(i)];
  if (spec.kind == OptionKind::dtype) return static_cast<Dtype>(o.integer);
  const int named = spec.choice_dtypes[static_cast<size_t>(o.integer)];
  return named < 0 ? Dtype::other : static_cast<Dtype>(named);
}

// other: the call has no such result.
Dtype Call::out_dtype(const OutSpec& spec) const {
  if (spec.when >= 0 && dtype_of_option(spec.when) == Dtype::other) return Dtype::other;
  for (const auto& [source, which] : spec.dtype) {
    const Dtype dtype = source == OutSpec::kFixed ? static_cast<Dtype>(which)
                        : source == OutSpec::kArg ? args_[which].dtype
                                                  : dtype_of_option(which);
    if (dtype != Dtype::other) return dtype;
  }
  return Dtype::other;
}

void Call::make_outputs() {
  outputs_made_ = true;
  const size_t count = schema_.outs.size();
  const bool given = out_ != Py_None;
  if (given && count > 1 && (!PyTuple_Check(out_) || static_cast<size_t>(PyTuple_GET_SIZE(out_)) != count))
    throw Refused{"out"};
  for (size_t i = 0; i < count; ++i) {
    const OutSpec& spec = schema_.outs[i];
    const Dtype dtype = out_dtype(spec);
    int64_t shape[TensorView::kMaxRank];
    int rank = 0;
    if (spec.shape.batched)
      for (; rank < batch_rank_; ++rank) shape[rank] = batch_->shape[rank];
    for (const Term& term : spec.shape.terms) {
      shape[rank] = evaluate(term);
      if (shape[rank++] < 0) throw Refused{"a size of the result is not known"};
    }
    if (spec.packed) shape[rank - 1] /= 2;
    if (dtype == Dtype::other) {  // made from an argument or option that is not there
      results_[i] = Object::shared(Py_None);
    } else if (given) {
      take_output(i, count > 1 ? PyTuple_GET_ITEM(out_, static_cast<Py_ssize_t>(i)) : out_, dtype, rank, shape);
    } else {
      results_[i] = new_tensor(dtype, rank, shape, device_, &outs_[i]);
    }
  }
}

void Call::take_output(size_t i, PyObject* value, Dtype dtype, int rank, const int64_t* shape) {
  TensorView& t = outs_[i];
  if (!is_plain_tensor(value) || !read_tensor(value, &t) || !t.here || t.device != device_ || t.dtype != dtype ||
      t.rank != rank)
    throw Refused{"out"};
  for (int j = 0; j < rank; ++j)
    if (t.shape[j] != shape[j]) throw Refused{"out"};
  if (!is_dense(t) && t.size() > 0) throw Refused{"out"};
  for (size_t a = 0; a < schema_.args.size(); ++a)
    if (args_[a].present() && overlap(t, args_[a])) throw Refused{"out overlaps an input"};
  for (size_t o = 0; o < i; ++o)
    if (outs_[o].present() && overlap(t, outs_[o])) throw Refused{"out overlaps another out"};
  if (requires_grad(value)) throw Refused{"requires grad"};
  results_[i] = Object::shared(value);
}

Object Call::result() {
  const auto count = static_cast<Py_ssize_t>(schema_.outs.size());
  if (count == 0) return Object::shared(Py_None);
  if (count == 1) return results_[0];
  const Object all = Object::owned(PyTuple_New(count));
  for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(all.get(), i, Py_NewRef(results_[i].get()));
  if (schema_.result.get() == Py_None) return all;
  // A NamedTuple is a tuple: made without its slow Python-level constructor.
  const Object arguments = Object::owned(PyTuple_Pack(1, all.get()));
  auto* const type = reinterpret_cast<PyTypeObject*>(schema_.result.get());
  return Object::owned(PyTuple_Type.tp_new(type, arguments.get(), nullptr));
}

}  // namespace sk
