// The tables of bindings, one per file of this folder.
#pragma once
#include <utility>
#include <vector>

#include "bindings/call.h"

namespace sk {

using Family = std::pair<const Binding*, int>;
Family quant_family();
Family moe_family();
Family gemm_family();
Family attention_family();
Family kv_family();
Family engram_family();
Family v4_family();
Family indexer_family();
Family hyper_family();

#if defined(SK_CUDA)
// Ops that need another binding there: they must not read what tensors hold.
Family cuda_moe_family();
Family cuda_gemm_family();
Family cuda_kv_family();
#endif

inline std::vector<Family> families() {
  return {
#if defined(SK_CUDA)
      cuda_moe_family(), cuda_gemm_family(), cuda_kv_family(),
#endif
      quant_family(),    moe_family(),       gemm_family(),    attention_family(), kv_family(),
      engram_family(),   v4_family(),        hyper_family(),   indexer_family(),
  };
}

}  // namespace sk
