# sparsekern._cuda, a module beside _C: it links CUDA's run time statically and finds the driver when it is used.
set(SPARSEKERN_CUDA AUTO CACHE STRING "Build the CUDA kernels: ON, OFF, or AUTO (where there are nvcc and a GPU)")
set(SPARSEKERN_CUDA_ARCHS "80;86;89;90a;100a;120a" CACHE STRING "What to compile them for; the last one also as PTX")

set(cuda_wanted ${SPARSEKERN_CUDA})
if(SPARSEKERN_CUDA STREQUAL AUTO)
  find_program(SPARSEKERN_NVCC nvcc)
  set(cuda_wanted OFF)
  if(SPARSEKERN_NVCC AND EXISTS /proc/driver/nvidia/version)
    set(cuda_wanted ON)
  endif()
endif()
if(NOT cuda_wanted)
  return()
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # said in flags: CMake's list does not know every suffix

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/gemm/*.cu csrc/moe/*.cu csrc/kernels/*/cuda.cu)
file(GLOB cuda_bindings CONFIGURE_DEPENDS csrc/bindings/*.cpp csrc/bindings/cuda/*.cpp)

# The folders of kernels/ that have a cuda.cu are the ops that the module offers.
set(cuda_ops ${cuda_sources})
list(FILTER cuda_ops INCLUDE REGEX "/kernels/")
list(TRANSFORM cuda_ops REPLACE ".*/kernels/([a-z0-9_]+)/.*" "\\1")
list(REMOVE_DUPLICATES cuda_ops)
list(JOIN cuda_ops " " cuda_ops)

# Nothing is fused that the source does not fuse: the bits are those of the CPU wherever sums have the same order.
set(cuda_flags --fmad=false --expt-relaxed-constexpr -Wno-deprecated-gpu-targets)
foreach(arch IN LISTS SPARSEKERN_CUDA_ARCHS)
  list(APPEND cuda_flags "SHELL:-gencode arch=compute_${arch},code=sm_${arch}")
endforeach()
list(GET SPARSEKERN_CUDA_ARCHS -1 newest)
string(REGEX REPLACE "[af]$" "" newest ${newest})
list(APPEND cuda_flags "SHELL:-gencode arch=compute_${newest},code=compute_${newest}")

pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda_sources} ${cuda_bindings} $<TARGET_OBJECTS:core>)
target_include_directories(_cuda PRIVATE csrc)
target_compile_features(_cuda PRIVATE cxx_std_20 cuda_std_20)
target_compile_definitions(_cuda PRIVATE SK_CUDA)
list(JOIN SPARSEKERN_CUDA_ARCHS " " archs)
set_source_files_properties(csrc/bindings/cuda/module.cpp PROPERTIES
                            COMPILE_DEFINITIONS "SK_CUDA_KERNELS=\"${cuda_ops}\";SK_CUDA_ARCHS=\"${archs}\"")
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>)
target_link_libraries(_cuda PRIVATE OpenMP::OpenMP_CXX CUDA::cudart_static)
target_link_options(_cuda PRIVATE -static-libstdc++ -static-libgcc)
install(TARGETS _cuda DESTINATION sparsekern)
