// The tensor cores' kernels by the type of the rows: each in a source of its own, so that they compile side by side.
#pragma once
#include "gemm/device.h"

namespace sk::gemm::cuda {

void start_bf16_rows(const DeviceArgs& p, int64_t promote, void* stream);
void start_e4m3_rows(const DeviceArgs& p, int64_t promote, void* stream);

}  // namespace sk::gemm::cuda
