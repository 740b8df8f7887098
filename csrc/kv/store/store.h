// Blocks in two tiers, memory and disk, moved by background threads.
//
// A block is in one tier at a time. Commands on one block take effect in the order in which they were submitted;
// others run side by side, those that somebody waits for first. No buffer is used again before the transfer that
// reads or writes it has ended: a slot changes hands when the command that used it is done, and memory that commands
// copy to or from is the caller's until their batch is.
//
// The caller says what moves where, and sees to it that a tier has room: more blocks than a tier holds wait for slots
// that commands of the same or earlier batches free, and are lost ("full") if none do. All methods are for any
// thread.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>

#include "kv/store/disk.h"

namespace sk::kv {

enum class Action : uint8_t {
  put,  // memory -> host tier
  take,  // either tier -> memory, and gone from the tier
  read,  // either tier -> memory, and still there
  spill,  // host tier -> disk
  drop,  // from either tier
};
constexpr size_t kActions = 5, kStatuses = 6;
enum class Place : uint8_t { none, host, disk };

struct KeyHash {
  size_t operator()(const Key& k) const { return k.low ^ k.high * 0x9e3779b97f4a7c15u; }
};

struct Command {
  Action action;
  Key key;
  std::vector<Span> memory;  // of put, take and read: as many bytes as a block has
  int64_t after = -1;  // the earlier command of the batch that must be done first
  std::string owned;  // put: the block itself, instead of memory
};

struct Batch {  // what was submitted together; the store's own
  std::vector<Status> status;
  int64_t awaited = 0;  // commands not done that somebody may wait for
};
using Ticket = std::shared_ptr<Batch>;

class Store {
 public:
  struct Options {
    int64_t block_bytes = 0;
    int64_t host_slots = 0;
    std::optional<Disk::Options> disk;
    int threads = 2;
  };
  explicit Store(const Options& options);  // throws StoreError
  ~Store();  // ends what was submitted
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  Ticket submit(std::vector<Command> commands);
  // Whether all but spills and drops of the batch, which nobody waits for, are done within the time.
  bool wait(const Ticket& batch, double seconds) const;
  std::vector<Status> statuses(const Ticket& batch) const;  // pending: not done yet

  Place where(const Key& key) const;
  // Blocks found on disk when it was opened, the oldest first; and how many there were no good.
  std::vector<Key> found() const;
  int64_t dropped() const { return disk_ ? disk_->dropped() : 0; }
  bool settle(double seconds) const;  // whether nothing is under way any more
  bool flush();  // what is on disk, to the disk itself

  struct Failure {
    Key key;
    Action action;
    Status status;
  };
  std::vector<Failure> failures();  // since the last call: the blocks are gone

  struct Counter {
    int64_t count = 0, bytes = 0;
    double seconds = 0;  // of transfers
  };
  struct Counts {
    std::array<Counter, kActions> from_host{}, from_disk{};  // by the tier that the block was in; put: from_host
    std::array<int64_t, kStatuses> by_status{};
    int64_t host_used = 0, disk_used = 0;
  };
  Counts counts() const;
  int64_t spills_open() const;  // not done yet

 private:
  struct Op;
  struct Entry {
    Place place = Place::none;
    int64_t slot = -1;
    std::shared_ptr<Op> last;  // the latest command on the block, while it is not done
  };

  void work();
  void skip_spill(const std::shared_ptr<Op>& op);
  void enqueue(const std::shared_ptr<Op>& op);  // what it waited for is done
  void give_slots();
  void fail_stuck();
  void run(const std::shared_ptr<Op>& op, std::unique_lock<std::mutex>& locked);
  Status move(Op& op, Place from, int64_t slot);
  void finish(const std::shared_ptr<Op>& op, Status status);
  void free_slot(Place place, int64_t slot);
  char* host(int64_t slot) const { return memory_ + slot * slot_bytes_; }

  const int64_t block_bytes_, slot_bytes_, host_slots_, disk_slots_;
  char* memory_ = nullptr;
  std::unique_ptr<Disk> disk_;

  mutable std::mutex mutex_;  // of all below
  mutable std::condition_variable work_, done_;
  std::unordered_map<Key, Entry, KeyHash> index_;
  std::vector<int64_t> free_host_, free_disk_;
  std::deque<std::shared_ptr<Op>> ready_, ready_later_;  // can run now: those that somebody waits for, and others
  std::deque<std::shared_ptr<Op>> need_host_, need_disk_;  // can run once they have a slot
  int64_t open_ = 0, running_ = 0, spills_open_ = 0;  // commands not done, being run; spills not done
  std::vector<Failure> failures_;
  Counts counts_;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sk::kv
