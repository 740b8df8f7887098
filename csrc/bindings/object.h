// What bindings need of Python without pybind11, which takes most of the time of compiling a file that includes it.
#pragma once
#include <Python.h>

#include <utility>

namespace sk {

struct PythonError {};  // thrown when the interpreter's own error is set

class Object {  // a counted reference, or none
 public:
  Object() = default;
  static Object owned(PyObject* p) {  // a new reference, as most of Python's functions return; null is their error
    if (p == nullptr) throw PythonError{};
    Object o;
    o.p_ = p;
    return o;
  }
  static Object shared(PyObject* p) { return owned(Py_NewRef(p)); }
  Object(const Object& o) : p_(Py_XNewRef(o.p_)) {}
  Object(Object&& o) noexcept : p_(o.release()) {}
  Object& operator=(Object o) noexcept {
    std::swap(p_, o.p_);
    return *this;
  }
  ~Object() { Py_XDECREF(p_); }

  PyObject* get() const { return p_; }
  PyObject* release() { return std::exchange(p_, nullptr); }

 private:
  PyObject* p_ = nullptr;
};

class Unlocked {  // without the interpreter's lock
 public:
  Unlocked() = default;
  Unlocked(const Unlocked&) = delete;
  ~Unlocked() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_ = PyEval_SaveThread();
};

}  // namespace sk
