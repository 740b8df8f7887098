// The little of CUDA that bindings need, without its headers.
#pragma once
#include <string>
#include <vector>

#include "core/types.h"

namespace sk::cuda {

// Makes a device current, and the one before again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_;
};

void check_launch();  // throws std::runtime_error where the last launch failed

// Indices of either width as contiguous int32; what int32 cannot hold becomes INT32_MIN. (csrc/cuda/convert.cu)
void to_int32(const void* from, bool wide, int64_t rows, int64_t cols, int64_t stride, int32_t* to, void* stream);

// Scales of e8m0 as floats.
void widen_scales(const uint8_t* from, int64_t rows, int64_t cols, int64_t stride, float* to, void* stream);
void fill_zeros(void* p, int64_t bytes, void* stream);

struct Facts {
  std::string name;
  int major, minor, processors;
};
std::string trouble();  // why no device can be used; empty where one can
std::vector<Facts> devices();

}  // namespace sk::cuda
