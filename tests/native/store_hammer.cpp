// Many threads on one store: whatever they do, a block that comes back is the right one, and no slot is lost.
//
//   store_hammer FOLDER SECONDS THREADS
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "kv/store/checksum.h"
#include "kv/store/store.h"

using namespace sk::kv;

namespace {

constexpr int64_t kBytes = 1000, kHost = 40, kDisk = 60;
constexpr uint64_t kKeys = 200;

void fill(uint64_t key, char* block) {
  for (int64_t i = 0; i < kBytes; ++i)
    block[i] = static_cast<char>((key * 2654435761u + static_cast<uint64_t>(i) * 97) >> 3);
}

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

void test_checksum() {
  require(crc32c(0, "123456789", 9) == 0xe3069283u, "RFC 3720's check value");
  std::mt19937 random(1);
  std::string data(100000, ' ');
  for (char& c : data) c = static_cast<char>(random());
  for (size_t size : {0, 1, 7, 8, 9, 63, 4096, 12287, 12288, 12289, 24577, 99999}) {
    const uint32_t want = crc32c_by_table(0, data.data(), size);
    require(crc32c(0, data.data(), size) == want, "the same checksum both ways");
    require(crc32c(crc32c(0, data.data(), size / 3), data.data() + size / 3, size - size / 3) == want,
            "in two parts");
  }
}

struct Tally { std::atomic<int64_t> right{0}, missing{0}, full{0}; };

void hammer(Store& store, unsigned seed, const std::atomic<bool>& stop, Tally& tally) {
  std::mt19937_64 random(seed);
  std::vector<char> from(4 * kBytes), to(4 * kBytes), want(kBytes);
  while (!stop) {
    std::vector<Command> commands;
    std::vector<uint64_t> keys;
    const size_t n = 1 + random() % 4;
    for (size_t i = 0; i < n; ++i) {
      const uint64_t key = random() % kKeys;
      const auto action = static_cast<Action>(random() % kActions);
      char* memory = (action == Action::put ? from : to).data() + static_cast<int64_t>(i) * kBytes;
      if (action == Action::put)
        fill(key, memory);
      else
        std::memset(memory, 0, kBytes);
      Command c{action, {key, ~key}, {}, random() % 3 == 0 ? static_cast<int64_t>(i) - 1 : -1, {}};
      if (action == Action::put || action == Action::take || action == Action::read)
        c.memory = {{memory, 300}, {memory + 300, kBytes - 300}};
      commands.push_back(c);
      keys.push_back(key);
    }
    const Ticket ticket = store.submit(commands);
    require(store.wait(ticket, 60), "a batch ends");
    const std::vector<Status> status = store.statuses(ticket);
    for (size_t i = 0; i < n; ++i) {
      const Action a = commands[i].action;
      require(status[i] != Status::corrupt && status[i] != Status::io_error, "no transfer fails");
      if (status[i] == Status::missing) ++tally.missing;
      if (status[i] == Status::full) ++tally.full;
      if ((a != Action::take && a != Action::read) || status[i] != Status::ok) continue;
      fill(keys[i], want.data());
      require(std::memcmp(to.data() + static_cast<int64_t>(i) * kBytes, want.data(), kBytes) == 0, "the right block");
      ++tally.right;
    }
    if (random() % 64 == 0) {
      (void)store.failures();
      const Store::Counts c = store.counts();
      require(c.host_used <= kHost && c.disk_used <= kDisk, "tiers are bounded");
    }
  }
}

void empty(Store& store) {
  std::vector<Command> drops;
  for (uint64_t key = 0; key < kKeys; ++key) drops.push_back({Action::drop, {key, ~key}, {}, -1, {}});
  store.submit(drops);
  require(store.settle(60), "everything ends");
  const Store::Counts c = store.counts();
  require(c.host_used == 0 && c.disk_used == 0, "no slot is lost");
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 4, "three arguments");
  test_checksum();
  Store::Options options{kBytes, kHost, Disk::Options{argv[1], kBytes, kDisk, 7, 16 << 10}, 3};
  Tally tally;
  {
    Store store(options);
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < std::atoi(argv[3]); ++i)
      threads.emplace_back([&, i] { hammer(store, static_cast<unsigned>(i), stop, tally); });
    std::this_thread::sleep_for(std::chrono::duration<double>(std::atof(argv[2])));
    stop = true;
    for (std::thread& t : threads) t.join();
    require(store.settle(60), "everything ends");
  }
  Store again(options);
  require(again.dropped() == 0, "what a closed store left is good");
  for (const Key& key : again.found()) {
    std::vector<char> block(kBytes), want(kBytes);
    const Ticket ticket = again.submit({{Action::read, key, {{block.data(), kBytes}}, -1, {}}});
    require(again.wait(ticket, 60) && again.statuses(ticket)[0] == Status::ok, "what was found is there");
    fill(key.high, want.data());
    require(std::memcmp(block.data(), want.data(), kBytes) == 0, "the right block after opening again");
  }
  empty(again);
  std::printf("%lld blocks came back, %lld were not there, %lld found no room\n", static_cast<long long>(tally.right),
              static_cast<long long>(tally.missing), static_cast<long long>(tally.full));
  require(tally.right > 0 && tally.full > 0, "something happened");
}
