#include "gemm/device.h"
#include "kernels/gemm/op.h"

namespace sk::gemm_groups::cuda {

void run(const Args& a, void* stream) {
  gemm::multiply_on_device({.weights = a.weights,
                            .a = a.a,
                            .a_dtype = a.a_dtype,
                            .a_scale = a.a_scale,
                            .a_group = a.a_group,
                            .a_row = nullptr,
                            .a_rows = a.rows,
                            .groups = a.on_device,
                            .rows = a.rows,
                            .bias = a.bias,
                            .bias_dtype = a.bias_dtype,
                            .out = a.out,
                            .out_dtype = a.out_dtype},
                           stream);
}

}  // namespace sk::gemm_groups::cuda
