// A tensor as pointers and sizes.
#pragma once
#include "core/types.h"

namespace sk {

struct TensorView {
  static constexpr int kMaxRank = 8;

  void* data = nullptr;
  Dtype dtype = Dtype::other;
  int rank = -1;  // -1: the argument is None
  bool here = false;  // on a device that this module serves
  int device = 0;     // which of them
  int64_t shape[kMaxRank];   // the first `rank`
  int64_t stride[kMaxRank];  // in elements

  bool present() const { return rank >= 0; }
  int64_t last() const { return rank > 0 ? shape[rank - 1] : 1; }
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  // Product of all dimensions but the last.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; ++i) n *= shape[i];
    return n;
  }
  // Elements from one row to the next, where one stride walks them all (layout "rows").
  int64_t row_stride() const {
    for (int i = rank - 2; i >= 0; --i)
      if (shape[i] > 1) return stride[i];
    return last();
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  Rows<T> as_rows() const {
    return {static_cast<T*>(data), row_stride()};
  }
};

}  // namespace sk
