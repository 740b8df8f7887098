// The vocabulary of the instruction set that this file is compiled for. CMakeLists.txt compiles every kernel source
// once per instruction set, with SK_ISA (avx2, say) and SK_ISA_HEADER set and the flags of that instruction set.
//
// 16 lanes everywhere, one order of every sum: the same bits on all of them (docs/numerics.md).
// No C++ standard header but <cstdint> may be included here: an inline function compiled for AVX-512 becomes a weak
// symbol, which the linker may choose for the whole program, and an older processor then runs it.
#pragma once
#include "core/types.h"

#include SK_ISA_HEADER

#include "simd/math.h"
