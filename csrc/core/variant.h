// One op, several implementations: the same Args, told apart by the instruction set they need.
#pragma once
#include "core/types.h"

namespace sk {

enum class Isa : int { scalar, avx2, avx512, avx512bf16 };

#if !defined(SK_CUDA)
template <class Args>
struct Variant {
  const char* name;
  Isa isa;
  void (*run)(const Args&);
};
#else
template <class Args>
struct Variant {
  const char* name;
  void (*run)(const Args&, void* stream);  // null: the op has no CUDA kernel
};
#endif

}  // namespace sk

// Every CPU kernel is one source, compiled once per instruction set (CMakeLists.txt): these are its rows, fastest
// first; the default is the first that this machine can run.
#if !defined(SK_CUDA)
#define SK_CPU_VARIANTS                                     \
  namespace avx512bf16 {                                    \
  void run(const Args&);                                    \
  }                                                         \
  namespace avx512 {                                        \
  void run(const Args&);                                    \
  }                                                         \
  namespace avx2 {                                          \
  void run(const Args&);                                    \
  }                                                         \
  namespace scalar {                                        \
  void run(const Args&);                                    \
  }                                                         \
  inline constexpr Variant<Args> kVariants[] = {            \
      SK_X86_VARIANTS{"scalar", Isa::scalar, &scalar::run}, \
  };
#else  // in sparsekern._cuda the same line declares the row of the op's CUDA kernel, csrc/kernels/<op>/cuda.cu
#define SK_CPU_VARIANTS                              \
  namespace cuda {                                   \
  [[gnu::weak]] void run(const Args&, void* stream); \
  }                                                  \
  inline constexpr Variant<Args> kVariants[] = {{"cuda", &cuda::run}};
#endif

#if defined(SK_AVX512)
#define SK_X86_VARIANTS                                                                     \
  {"avx512bf16", Isa::avx512bf16, &avx512bf16::run}, {"avx512", Isa::avx512, &avx512::run}, \
      {"avx2", Isa::avx2, &avx2::run},
#elif defined(__x86_64__)
#define SK_X86_VARIANTS {"avx2", Isa::avx2, &avx2::run},
#else
#define SK_X86_VARIANTS
#endif
