#include "kernels/moe_permutation/op.h"

namespace sk::moe_permutation::SK_ISA {

void run(const Args& a) { moe::permute(a.slots, a.counts, a.alignment, a.result); }

}  // namespace sk::moe_permutation::SK_ISA
