// Copies that go on while threads do, and the barriers that tell when they are over.
#pragma once
#include "warp.h"

namespace model {

// --- cp.async: copies of this thread, in groups
void copy_async(u32 to, const void* from, u32 bytes, u32 bytes_read, int line);
void copy_commit(int line);
void copy_wait(u32 groups_left, int line);  // 0xffffffff: also what is not committed
void copy_arrive(u32 barrier, bool counted, int line);  // cp.async.mbarrier.arrive

// --- mbarriers in shared memory
void mbarrier_init(u32 address, u32 count, int line);
void mbarrier_invalidate(u32 address, int line);
u64 mbarrier_arrive(u32 address, u32 count, int line);
u64 mbarrier_expect(u32 address, u32 bytes, bool arrives, int line);
void mbarrier_complete(u32 address, u32 bytes, int line);
bool mbarrier_wait_parity(u32 address, u32 parity, bool blocks, int line);
bool mbarrier_wait_state(u32 address, u64 state, bool blocks, int line);

// --- bulk copies, which pass by the asynchronous proxy
void fence_proxy_async();
void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier, u32 multicast, int line);
void bulk_store(void* to, u32 from, u32 bytes, int line);

void bulk_commit();
void bulk_wait(u32 groups_left, int line);

}  // namespace model
