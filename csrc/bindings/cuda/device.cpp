#include "bindings/cuda/device.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace sk::cuda {
namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

OnDevice::OnDevice(int device) : before_(device) {
  check(cudaGetDevice(&before_));
  if (before_ != device) check(cudaSetDevice(device));
  if (before_ == device) before_ = -1;
}
OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

void check_launch() { check(cudaGetLastError()); }

void fill_zeros(void* p, int64_t bytes, void* stream) {
  check(cudaMemsetAsync(p, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
}

std::string trouble() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    cudaGetLastError();
    if (driver == 0) return "no NVIDIA driver is installed";
    return "the NVIDIA driver is too old for CUDA " + std::to_string(CUDART_VERSION / 1000);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  return count == 0 ? "no CUDA device" : "";
}

std::vector<Facts> devices() {
  std::vector<Facts> all;
  int count = 0;
  if (!trouble().empty() || cudaGetDeviceCount(&count) != cudaSuccess) return all;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p = {};
    check(cudaGetDeviceProperties(&p, i));
    Facts& facts = all.emplace_back(Facts{p.name, 0, 0, 0});
    check(cudaDeviceGetAttribute(&facts.major, cudaDevAttrComputeCapabilityMajor, i));
    check(cudaDeviceGetAttribute(&facts.minor, cudaDevAttrComputeCapabilityMinor, i));
    check(cudaDeviceGetAttribute(&facts.processors, cudaDevAttrMultiProcessorCount, i));
  }
  return all;
}

}  // namespace sk::cuda
