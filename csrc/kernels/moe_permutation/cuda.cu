#include "kernels/moe_permutation/op.h"
#include "moe/device.h"

namespace sk::moe_permutation::cuda {

void run(const Args& a, void* stream) { moe::permute_on_device(a.slots, a.counts, a.alignment, a.result, stream); }

}  // namespace sk::moe_permutation::cuda
