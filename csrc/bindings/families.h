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
Family indexer_family();

inline std::vector<Family> families() {
  return {
      quant_family(), moe_family(), gemm_family(), attention_family(), kv_family(), indexer_family(),
  };
}

}  // namespace sk
