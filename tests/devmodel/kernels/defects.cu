// Kernels that are right when `defect` is 0, and wrong in one way each otherwise: the model has to say so.
// Which number is what: test_defects.py.
#include <cstdint>

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Sums of groups of 64 neighbours, by way of shared memory; and how often each residue modulo 8 occurs.
extern "C" __global__ void __launch_bounds__(128) sums(const int* x, int* y, int* counts, int n, int defect) {
  __shared__ int tile[128];
  __shared__ int histogram[8];
  const int t = threadIdx.x, i = blockIdx.x * 128 + t, lane = t & 31;
  if (t < 8 && defect != 3) histogram[t] = 0;
  tile[t + (defect == 7 && t == 127)] = i < n + (defect == 6) ? x[i] : 0;
  if (defect != 1) __syncthreads();
  for (int step = 32; step > 0; step /= 2) {
    int sum = tile[t];
    if ((t & 63) < step) sum += tile[t + step];
    if (defect != 2) __syncthreads();
    tile[t] = sum;
    if (defect == 4 ? t < 96 : true) {
      if (defect == 5 && t < 64)
        asm volatile("bar.sync 0;" ::: "memory");
      else
        __syncthreads();
    }
  }
  if (t < n) {
    if (defect == 23)
      histogram[tile[t & 64] & 7] += 1;
    else
      atomicAdd(&histogram[tile[t & 64] & 7], 1);
  }
  if (defect != 24) __syncthreads();

  // Each warp turns its numbers round through shared memory.
  tile[t] = i;
  if (defect != 10) __syncwarp();
  const int other = tile[t ^ 31];
  int partner;
  if (defect == 9) {
    partner = lane;
    if (lane < 16) partner = __shfl_xor_sync(0xffffffffu, i, 31);
  } else {
    partner = __shfl_xor_sync(0xffffffffu, i, 31);
  }
  if (partner != other) asm volatile("trap;");

  if (i < n && !(defect == 16 && i == n - 1)) y[i] = other;
  if (defect == 8 && t == 0) *reinterpret_cast<int2*>(y + 1) = make_int2(0, 0);
  if (t < 8) {
    if (defect == 11)
      counts[t] += histogram[t];
    else
      atomicAdd(&counts[t], histogram[t]);
  }
  if (defect == 22 && t < 64) asm volatile("bar.sync 1, 96;" ::: "memory");
}

// c[16, 8] += a[16, k] b[8, k]^T, bf16, one warp; k in pieces of 16 through two buffers that cp.async fills.
extern "C" __global__ void __launch_bounds__(64)
    product(const uint16_t* a, const uint16_t* b, float* c, int k, int defect) {
  __shared__ __align__(16) uint16_t buffer[2][24 * 16 + 8];
  const int t = threadIdx.x, lane = t & 31;
  const auto fetch = [&](int piece) {
    if (t < 48) {
      const int row = t / 2, half = t % 2 * 8;
      const uint16_t* from = (row < 16 ? a + row * k : b + (row - 16) * k) + piece * 16 + half;
      asm volatile(
          "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buffer[piece & 1][row * 16 + half])),
          "l"(from));
    }
    asm volatile("cp.async.commit_group;");
  };
  float acc[4] = {};
  fetch(0);
  for (int piece = 0; piece < k / 16; ++piece) {
    if (piece + 1 < k / 16)
      fetch(piece + 1);
    else
      asm volatile("cp.async.commit_group;");
    if (defect == 12)
      asm volatile("cp.async.wait_group 2;" ::: "memory");
    else
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    if (defect != 13) __syncthreads();
    if (t < 32) {
      uint32_t fa[4], fb[2];
      const uint16_t* tile = buffer[piece & 1];
      const uint32_t row = shared_address(tile + (lane & 15) * 16 + (lane >> 4) * 8) + (defect == 15 ? 8 : 0);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                   : "r"(row)
                   : "memory");
      const uint32_t column = shared_address(tile + (16 + (lane & 7)) * 16 + (lane >> 3 & 1) * 8);
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(fb[0]), "=r"(fb[1])
                   : "r"(column)
                   : "memory");
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
          "%1, %2, %3};"
          : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
          : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    }
    if (defect != 14) __syncthreads();
  }
  if (t < 32)
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}

__device__ void wait_parity(uint64_t* barrier, uint32_t parity) {
  asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra D; bra W; D: }" ::"r"(
                   shared_address(barrier)),
               "r"(parity)
               : "memory");
}
__device__ void arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}

// y = x + 1, in pieces of 32 numbers: warp 1 fetches them by bulk copies into two stages, warp 0 adds and stores.
extern "C" __global__ void __launch_bounds__(64) increments(const int* x, int* y, int pieces, int defect) {
  __shared__ __align__(128) int stage[2][32];
  __shared__ __align__(128) int result[32];
  __shared__ uint64_t full[2], empty[2];
  const int t = threadIdx.x;
  if (t == 0)
    for (int s = 0; s < 2; ++s) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&full[s])), "r"(1) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&empty[s])), "r"(32) : "memory");
    }
  if (defect != 25) __syncthreads();
  if (t == 32) {
    for (int p = 0; p < pieces; ++p) {
      const int s = p & 1, phase = p / 2 & 1;
      wait_parity(&empty[s], defect == 17 ? phase : phase ^ 1);
      const int bytes = defect == 18 ? 112 : 128;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[s])),
                   "r"(bytes)
                   : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       shared_address(stage[s])),
                   "l"(x + p * 32), "r"(128), "r"(shared_address(&full[s]))
                   : "memory");
    }
  } else if (t < 32) {
    for (int p = 0; p < pieces; ++p) {
      const int s = p & 1, phase = p / 2 & 1;
      if (defect != 19) wait_parity(&full[s], phase);
      if (defect == 20) arrive(&empty[s]);
      const int value = stage[s][t];
      if (defect != 20) arrive(&empty[s]);
      if (t == 0 && defect != 26) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      __syncwarp();
      result[t] = value + 1;
      if (defect != 21) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncwarp();
      if (t == 0) {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 128;" ::"l"(y + p * 32),
                     "r"(shared_address(result))
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
    }
    if (t == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}
