// The CUDA run time as programs link it, with the model for a device: what nvcc compiled for the host starts its
// kernels here. Declared by hand, so that no CUDA header is needed.
#include <cstring>
#include <map>
#include <string>

#include "core.h"

namespace model {
namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidFunction = 98, kLaunchFailure = 719;
constexpr size_t kDefaultShared = 48 << 10;

struct Function {
  const Kernel* kernel = nullptr;
  std::string name;
  size_t most_shared = kDefaultShared;
};
std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> all;
  return all;
}
struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};
std::vector<Configuration> configurations;
int last_error = kSuccess, architecture = 80, device = 0;

int fail(int error) { return last_error = error; }

int start(const void* entry, Dim3 grid, Dim3 block, Dim3 cluster, void** arguments, size_t shared) {
  const auto found = functions().find(entry);
  if (found == functions().end()) return fail(kInvalidFunction);
  Function& f = found->second;
  if (f.kernel == nullptr) f.kernel = find_kernel(f.name.c_str());
  if (f.kernel == nullptr) {
    report("launch", 0, "%s was not translated", f.name.c_str());
    return fail(kInvalidFunction);
  }
  if (shared > f.most_shared) return fail(kInvalidValue);
  const uint64_t before = error_count();
  start_kernel(*f.kernel, grid, block, cluster, static_cast<uint32_t>(shared), arguments);
  return error_count() == before ? kSuccess : fail(kLaunchFailure);
}

}  // namespace
}  // namespace model

using namespace model;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  functions()[host].name = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void* stream) {
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  memcpy(stream, &c.stream, sizeof c.stream);
  return kSuccess;
}
int __cudaGetKernel(const void** kernel, const void* entry) {
  *kernel = entry;
  return kSuccess;
}
int __cudaLaunchKernel(const void* entry, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  return start(entry, grid, block, {0, 0, 0}, arguments, shared);
}
int cudaLaunchKernel(const void* entry, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  return start(entry, grid, block, {0, 0, 0}, arguments, shared);
}
// struct cudaLaunchConfig_t, and of its attributes the cluster's size (4).
struct Attribute {
  int id, pad;
  uint32_t value[16];
};
struct LaunchConfig {
  Dim3 grid, block;
  size_t shared;
  void* stream;
  const Attribute* attributes;
  unsigned count;
};
int cudaLaunchKernelExC(const LaunchConfig* c, const void* entry, void** arguments) {
  Dim3 cluster = {0, 0, 0};
  for (unsigned i = 0; i < c->count; ++i)
    if (c->attributes[i].id == 4) memcpy(&cluster, c->attributes[i].value, sizeof cluster);
  return start(entry, c->grid, c->block, cluster, arguments, c->shared);
}
int cudaFuncSetAttribute(const void* entry, int attribute, int value) {
  constexpr int kMaxDynamicShared = 8;
  if (attribute == kMaxDynamicShared) functions()[entry].most_shared = static_cast<size_t>(value);
  return value > (227 << 10) ? fail(kInvalidValue) : kSuccess;
}

int cudaMemsetAsync(void* p, int byte, size_t bytes, void*) {
  memset(p, byte, bytes);
  mark_initialised(p, bytes);
  return kSuccess;
}

int cudaGetDeviceCount(int* count) {
  *count = 1;
  return kSuccess;
}
int cudaGetDevice(int* current) {
  *current = device;
  return kSuccess;
}
int cudaSetDevice(int wanted) {
  device = wanted;
  return wanted == 0 ? kSuccess : fail(101);
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 16:  // processors
      *value = 4;
      break;
    case 75:
      *value = architecture / 10;
      break;
    case 76:
      *value = architecture % 10;
      break;
    case 97:  // most shared memory of a block
      *value = architecture == 80 ? 163 << 10 : architecture / 10 == 8 || architecture == 120 ? 99 << 10 : 227 << 10;
      break;
    default:
      *value = 0;
  }
  return kSuccess;
}
int cudaGetDeviceProperties(void* properties, int) {
  memset(properties, 0, 256);
  strcpy(static_cast<char*>(properties), "CPU model");
  return kSuccess;
}
int cudaDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
int cudaGetLastError() {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}
const char* cudaGetErrorString(int error) {
  switch (error) {
    case kInvalidValue:
      return "invalid value";
    case kInvalidFunction:
      return "no such kernel";
    case kLaunchFailure:
      return "the device model found errors";
    default:
      return error == kSuccess ? "no error" : "error";
  }
}

void model_set_architecture(int sm) { architecture = sm; }
}
