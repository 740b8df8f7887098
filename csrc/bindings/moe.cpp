#include "bindings/families.h"

namespace sk {

Family moe_family() { return {nullptr, 0}; }

}  // namespace sk
