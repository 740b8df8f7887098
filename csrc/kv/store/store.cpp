#include "kv/store/store.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace sk::kv {

struct Store::Op {
  Command command;
  Ticket batch;
  size_t position = 0;  // in the batch
  int blockers = 0;     // earlier commands that it waits for
  int64_t slot = -1;    // in the tier that it writes to
  bool pointless = false;  // a spill of a block that is to leave its tier anyway
  bool started = false, done = false;
  std::vector<std::shared_ptr<Op>> next;  // those that wait for it
};

namespace {

bool awaited(Action a) { return a == Action::put || a == Action::take || a == Action::read; }

int64_t total(const std::vector<Span>& spans) {
  int64_t sum = 0;
  for (const Span& s : spans) sum += s.bytes;
  return sum;
}

void copy_in(char* block, const std::vector<Span>& from) {
  for (const Span& s : from) {
    std::memcpy(block, s.data, static_cast<size_t>(s.bytes));
    block += s.bytes;
  }
}
void copy_out(const char* block, const std::vector<Span>& to) {
  for (const Span& s : to) {
    std::memcpy(s.data, block, static_cast<size_t>(s.bytes));
    block += s.bytes;
  }
}

}  // namespace

Store::Store(const Options& options)
    : block_bytes_(options.block_bytes),
      slot_bytes_((options.block_bytes + 63) / 64 * 64),
      host_slots_(options.host_slots),
      disk_slots_(options.disk ? options.disk->slots : 0) {
  if (block_bytes_ < 1 || host_slots_ < 1 || options.threads < 1)
    throw StoreError("a store needs blocks of at least 1 byte, 1 slot in memory and 1 thread");
  if (options.disk) disk_ = std::make_unique<Disk>(*options.disk);
  const auto size = static_cast<size_t>(host_slots_ * slot_bytes_);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw StoreError("no memory for " + std::to_string(host_slots_) + " blocks");
  madvise(memory, size, MADV_HUGEPAGE);
  memory_ = static_cast<char*>(memory);
  for (int64_t i = host_slots_; i-- > 0;) free_host_.push_back(i);
  if (disk_) {
    std::vector<bool> used(static_cast<size_t>(disk_slots_));
    for (const Disk::Found& f : disk_->found()) {
      used[static_cast<size_t>(f.slot)] = true;
      index_[f.key] = {Place::disk, f.slot, nullptr};
    }
    for (int64_t i = disk_slots_; i-- > 0;)
      if (!used[static_cast<size_t>(i)]) free_disk_.push_back(i);
  }
  for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { work(); });
}

Store::~Store() {
  {
    std::unique_lock locked(mutex_);
    done_.wait(locked, [this] { return open_ == 0; });
    ending_ = true;
  }
  work_.notify_all();
  for (std::thread& t : threads_) t.join();
  munmap(memory_, static_cast<size_t>(host_slots_ * slot_bytes_));
}

Ticket Store::submit(std::vector<Command> commands) {
  auto batch = std::make_shared<Batch>();
  batch->status.assign(commands.size(), Status::pending);
  std::vector<std::shared_ptr<Op>> ops;
  for (size_t i = 0; i < commands.size(); ++i) {
    const Command& c = commands[i];
    const bool own = c.action == Action::put && !c.owned.empty();
    const int64_t bytes = own ? static_cast<int64_t>(c.owned.size()) : total(c.memory);
    if (awaited(c.action) && bytes != block_bytes_)
      throw StoreError("a block has " + std::to_string(block_bytes_) + " bytes, the memory for it " +
                       std::to_string(bytes));
    if (c.after >= static_cast<int64_t>(i)) throw StoreError("a command waits for one that is not before it");
    batch->awaited += awaited(c.action);
    ops.push_back(std::make_shared<Op>());
    ops.back()->command = std::move(commands[i]);
    ops.back()->batch = batch;
    ops.back()->position = i;
  }
  {
    const std::lock_guard locked(mutex_);
    for (const auto& op : ops) {
      const auto wait_for = [&](const std::shared_ptr<Op>& earlier) {
        if (earlier == nullptr || earlier->done) return;
        earlier->next.push_back(op);
        ++op->blockers;
      };
      Entry& entry = index_[op->command.key];
      if (op->command.action == Action::take || op->command.action == Action::drop) skip_spill(entry.last);
      wait_for(entry.last);
      if (op->command.after >= 0) wait_for(ops[static_cast<size_t>(op->command.after)]);
      entry.last = op;
      ++open_;
      spills_open_ += op->command.action == Action::spill;
    }
    for (const auto& op : ops)
      if (op->blockers == 0) enqueue(op);
    give_slots();
    fail_stuck();
  }
  work_.notify_all();
  return batch;
}

// With the lock held, as all below but move().
//
// Nobody who asks for a block shall wait until its spill's turn has come.
void Store::skip_spill(const std::shared_ptr<Op>& op) {
  if (op == nullptr || op->command.action != Action::spill || op->started) return;
  op->pointless = true;
  if (op->blockers == 0) ready_.push_back(op);  // once more; who finds it started passes over it
}

void Store::enqueue(const std::shared_ptr<Op>& op) {
  const Action a = op->command.action;
  if (op->pointless)
    ready_.push_back(op);
  else if (a == Action::put)
    need_host_.push_back(op);
  else if (a == Action::spill && disk_)
    need_disk_.push_back(op);
  else
    (awaited(a) ? ready_ : ready_later_).push_back(op);
}

void Store::give_slots() {
  for (; !need_host_.empty() && !free_host_.empty(); need_host_.pop_front()) {
    need_host_.front()->slot = free_host_.back();
    free_host_.pop_back();
    ready_.push_back(need_host_.front());
  }
  for (; !need_disk_.empty() && (need_disk_.front()->started || !free_disk_.empty()); need_disk_.pop_front()) {
    if (need_disk_.front()->started) continue;
    need_disk_.front()->slot = free_disk_.back();
    free_disk_.pop_back();
    ready_later_.push_back(need_disk_.front());
  }
}

// Where nothing runs or can run, nobody will free the slots that the rest waits for.
void Store::fail_stuck() {
  while (running_ == 0 && ready_.empty() && ready_later_.empty() && !(need_host_.empty() && need_disk_.empty())) {
    auto& queue = need_disk_.empty() ? need_host_ : need_disk_;  // a spill that is lost frees a slot in memory
    const std::shared_ptr<Op> op = queue.front();
    queue.pop_front();
    if (std::exchange(op->started, true)) continue;
    Entry& entry = index_[op->command.key];
    if (entry.place != Place::none) free_slot(entry.place, entry.slot);
    entry.place = Place::none;
    finish(op, Status::full);
  }
}

void Store::free_slot(Place place, int64_t slot) {
  (place == Place::host ? free_host_ : free_disk_).push_back(slot);
  give_slots();
}

void Store::work() {
  std::unique_lock locked(mutex_);
  for (;;) {
    work_.wait(locked, [this] { return ending_ || !ready_.empty() || !ready_later_.empty(); });
    if (ready_.empty() && ready_later_.empty()) return;
    auto& queue = ready_.empty() ? ready_later_ : ready_;
    const std::shared_ptr<Op> op = queue.front();
    queue.pop_front();
    if (!std::exchange(op->started, true))
      run(op, locked);
    else
      fail_stuck();  // it may have been all that was left
  }
}

void Store::run(const std::shared_ptr<Op>& op, std::unique_lock<std::mutex>& locked) {
  const Action action = op->command.action;
  const Entry before = index_[op->command.key];  // nobody else touches it before this is done
  const bool there = before.place != Place::none;
  const bool moves = action == Action::put     ? !there
                     : action == Action::spill ? before.place == Place::host && !op->pointless
                                               : there;
  Status status = Status::ok;
  const auto start = std::chrono::steady_clock::now();
  ++running_;
  if (moves && !(action == Action::drop && before.place == Place::host)) {
    locked.unlock();
    status = move(*op, before.place, before.slot);
    locked.lock();
  } else if (!moves && action != Action::drop && !(action == Action::put && there)) {
    status = action == Action::spill && there ? Status::ok : Status::missing;
  }
  --running_;
  Entry& entry = index_[op->command.key];
  // Where the block is now. One that could not be moved, or was no good, is gone.
  const bool arrived = moves && status == Status::ok && (action == Action::put || action == Action::spill);
  const bool stays = !moves || (action == Action::read && status == Status::ok);
  if (there && !stays) free_slot(before.place, before.slot);
  if (!stays) {
    entry.place = !arrived ? Place::none : action == Action::put ? Place::host : Place::disk;
    entry.slot = arrived ? op->slot : -1;
  }
  if (op->slot >= 0 && !arrived) free_slot(action == Action::put ? Place::host : Place::disk, op->slot);
  if (moves && status == Status::ok) {
    auto& counter =
        (before.place == Place::disk ? counts_.from_disk : counts_.from_host)[static_cast<size_t>(action)];
    ++counter.count;
    counter.bytes += block_bytes_;
    counter.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  finish(op, status);
  fail_stuck();
}

// The transfer itself, without the lock.
Status Store::move(Op& op, Place from, int64_t slot) {
  const Command& c = op.command;
  switch (c.action) {
    case Action::put:
      if (c.owned.empty())
        copy_in(host(op.slot), c.memory);
      else
        std::memcpy(host(op.slot), c.owned.data(), c.owned.size());
      return Status::ok;
    case Action::spill:
      return disk_ ? disk_->write(op.slot, c.key, host(slot)) : Status::full;
    case Action::drop:
      disk_->clear(slot);
      return Status::ok;
    case Action::take:
    case Action::read:
      if (from == Place::host) {
        copy_out(host(slot), c.memory);
        return Status::ok;
      }
      const Status status = disk_->read(slot, c.key, c.memory);
      if (c.action == Action::take || status != Status::ok) disk_->clear(slot);
      return status;
  }
  return Status::ok;
}

void Store::finish(const std::shared_ptr<Op>& op, Status status) {
  const Command& c = op->command;
  op->done = true;
  op->batch->status[op->position] = status;
  op->batch->awaited -= awaited(c.action);
  ++counts_.by_status[static_cast<size_t>(status)];
  if (status != Status::ok) failures_.push_back({c.key, c.action, status});
  const auto found = index_.find(c.key);
  if (found != index_.end() && found->second.last == op) {
    found->second.last = nullptr;
    if (found->second.place == Place::none) index_.erase(found);
  }
  for (const auto& later : op->next)
    if (--later->blockers == 0) enqueue(later);
  op->next.clear();
  give_slots();
  --open_;
  spills_open_ -= c.action == Action::spill;
  if (!ready_.empty() || !ready_later_.empty()) work_.notify_all();
  if (op->batch->awaited == 0 || open_ == 0) done_.notify_all();
}

bool Store::wait(const Ticket& batch, double seconds) const {
  std::unique_lock locked(mutex_);
  return done_.wait_for(locked, std::chrono::duration<double>(seconds), [&] { return batch->awaited == 0; });
}

std::vector<Status> Store::statuses(const Ticket& batch) const {
  const std::lock_guard locked(mutex_);
  return batch->status;
}

Place Store::where(const Key& key) const {
  const std::lock_guard locked(mutex_);
  const auto found = index_.find(key);
  return found == index_.end() ? Place::none : found->second.place;
}

std::vector<Key> Store::found() const {
  std::vector<Key> keys;
  for (const Disk::Found& f : disk_ ? disk_->found() : std::vector<Disk::Found>{}) keys.push_back(f.key);
  return keys;
}

bool Store::settle(double seconds) const {
  std::unique_lock locked(mutex_);
  return done_.wait_for(locked, std::chrono::duration<double>(seconds), [&] { return open_ == 0; });
}

bool Store::flush() { return disk_ == nullptr || disk_->flush(); }

std::vector<Store::Failure> Store::failures() {
  const std::lock_guard locked(mutex_);
  return std::exchange(failures_, {});
}

int64_t Store::spills_open() const {
  const std::lock_guard locked(mutex_);
  return spills_open_;
}

Store::Counts Store::counts() const {
  const std::lock_guard locked(mutex_);
  Counts c = counts_;
  c.host_used = host_slots_ - static_cast<int64_t>(free_host_.size());
  c.disk_used = disk_slots_ - static_cast<int64_t>(free_disk_.size());
  return c;
}

}  // namespace sk::kv
