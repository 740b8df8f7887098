// The columns of a row that count.
#pragma once
#include "core/types.h"

namespace sk::indexer {

struct Range {
  int32_t first, last;  // half open, 0 <= first <= last <= columns
};

}  // namespace sk::indexer
