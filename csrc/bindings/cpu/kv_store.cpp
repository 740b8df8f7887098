#include "bindings/cpu/kv_store.h"

#include <pybind11/stl.h>

#include <cstring>

#include "kv/store/checksum.h"
#include "kv/store/store.h"

namespace py = pybind11;

namespace sk {
namespace {

// Pages of a pool, the same numbers in every layer: the caller's memory.
struct PoolMemory {
  char* data;
  int64_t page_bytes, page_stride, layers, layer_stride, pages, pages_per_block;
};

kv::Key key_of(const py::handle& name) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(name.ptr(), &data, &size) != 0) throw py::error_already_set();
  if (size != 16) throw py::value_error("a key has 16 bytes, not " + std::to_string(size));
  kv::Key key;
  std::memcpy(&key, data, sizeof key);
  return key;
}
py::bytes name_of(const kv::Key& key) { return {reinterpret_cast<const char*>(&key), sizeof key}; }

class BlockStore {
 public:
  BlockStore(int64_t block_bytes, int64_t host_slots, int threads, const std::optional<std::string>& folder,
             int64_t disk_slots, uint64_t kind, int64_t segment_bytes)
      : block_bytes_(block_bytes) {
    std::optional<kv::Disk::Options> disk;
    if (folder) disk = {*folder, block_bytes, disk_slots, kind, segment_bytes};
    const py::gil_scoped_release unlocked;
    store_ = std::make_shared<kv::Store>(kv::Store::Options{block_bytes, host_slots, disk, threads});
  }
  ~BlockStore() { close(); }

  void attach(py::object owner, uint64_t address, int64_t page_bytes, int64_t page_stride, int64_t layers,
              int64_t layer_stride, int64_t pages, int64_t pages_per_block) {
    owners_.append(std::move(owner));
    pools_.push_back(
        {reinterpret_cast<char*>(address), page_bytes, page_stride, layers, layer_stride, pages, pages_per_block});
  }

  // (action, key, pages of all pools or None, the command to wait for or -1), ...
  kv::Ticket submit(const py::list& commands) {
    std::vector<kv::Command> all;
    all.reserve(commands.size());
    for (const py::handle item : commands) {
      const auto c = py::reinterpret_borrow<py::tuple>(item);
      all.push_back({.action = static_cast<kv::Action>(c[0].cast<int>()),
                     .key = key_of(c[1]),
                     .memory = c[2].is_none() ? std::vector<kv::Span>{} : spans(c[2].cast<std::vector<int64_t>>()),
                     .after = c[3].cast<int64_t>(),
                     .owned = {}});
    }
    return open()->submit(std::move(all));
  }

  kv::Ticket insert(const py::bytes& key, const std::string& block) {
    std::vector<kv::Command> one;
    one.push_back({.action = kv::Action::put, .key = key_of(key), .memory = {}, .after = -1, .owned = block});
    return open()->submit(std::move(one));
  }

  // The block, which stays or goes; None where it is not there or no good.
  py::object fetch(const py::bytes& key, bool take) {
    PyObject* bytes = PyBytes_FromStringAndSize(nullptr, block_bytes_);
    if (bytes == nullptr) throw py::error_already_set();
    auto block = py::reinterpret_steal<py::object>(bytes);
    const std::shared_ptr<kv::Store> store = open();
    const kv::Ticket ticket = store->submit({{.action = take ? kv::Action::take : kv::Action::read,
                                              .key = key_of(key),
                                              .memory = {{PyBytes_AS_STRING(bytes), block_bytes_}},
                                              .after = -1,
                                              .owned = {}}});
    {
      const py::gil_scoped_release unlocked;
      while (!store->wait(ticket, 3600)) continue;  // the buffer is the transfer's until it ends
    }
    return store->statuses(ticket)[0] == kv::Status::ok ? block : py::none();
  }

  bool wait(const kv::Ticket& ticket, double seconds) {
    const std::shared_ptr<kv::Store> store = open();
    const py::gil_scoped_release unlocked;
    return store->wait(ticket, seconds);
  }
  py::bytes statuses(const kv::Ticket& ticket) {
    const std::vector<kv::Status> all = open()->statuses(ticket);
    return {reinterpret_cast<const char*>(all.data()), all.size()};
  }
  int where(const py::bytes& key) { return static_cast<int>(open()->where(key_of(key))); }
  py::list found() {
    py::list keys;
    for (const kv::Key& key : open()->found()) keys.append(name_of(key));
    return keys;
  }
  int64_t dropped() { return open()->dropped(); }
  bool settle(double seconds) {
    const std::shared_ptr<kv::Store> store = open();
    const py::gil_scoped_release unlocked;
    return store->settle(seconds);
  }
  bool flush() {
    const std::shared_ptr<kv::Store> store = open();
    const py::gil_scoped_release unlocked;
    return store->flush();
  }
  py::list failures() {
    py::list all;
    for (const kv::Store::Failure& f : open()->failures())
      all.append(py::make_tuple(name_of(f.key), static_cast<int>(f.action), static_cast<int>(f.status)));
    return all;
  }
  int64_t spills_open() { return open()->spills_open(); }
  py::dict counts() {
    constexpr const char* kActionNames[] = {"put", "take", "read", "spill", "drop"};
    constexpr const char* kStatusNames[] = {"pending", "ok", "missing", "corrupt", "io_error", "full"};
    const kv::Store::Counts c = open()->counts();
    py::dict all;
    for (size_t i = 0; i < kv::kActions; ++i)
      for (const auto& [place, counter] : {std::pair("host", c.from_host[i]), std::pair("disk", c.from_disk[i])})
        all[py::make_tuple(kActionNames[i], place)] = py::make_tuple(counter.count, counter.bytes, counter.seconds);
    for (size_t i = 0; i < kv::kStatuses; ++i) all[kStatusNames[i]] = c.by_status[i];
    all["host_used"] = c.host_used;
    all["disk_used"] = c.disk_used;
    return all;
  }
  void close() {
    std::shared_ptr<kv::Store> store = std::move(store_);
    if (store != nullptr) {
      const py::gil_scoped_release unlocked;
      while (!store->settle(3600)) continue;  // transfers end before the memory may go
      store.reset();
    }
    owners_ = py::list();
  }

 private:
  // Shared: it may be closed while another thread waits.
  std::shared_ptr<kv::Store> open() const {
    if (store_ == nullptr) throw std::runtime_error("the store is closed");
    return store_;
  }

  std::vector<kv::Span> spans(const std::vector<int64_t>& pages) const {
    std::vector<kv::Span> all;
    size_t next = 0;
    for (const PoolMemory& pool : pools_)
      for (int64_t i = 0; i < pool.pages_per_block; ++i, ++next) {
        if (next >= pages.size() || pages[next] < 0 || pages[next] >= pool.pages)
          throw py::value_error("pages do not fit the pools");
        for (int64_t layer = 0; layer < pool.layers; ++layer)
          all.push_back({pool.data + layer * pool.layer_stride + pages[next] * pool.page_stride, pool.page_bytes});
      }
    return all;
  }

  const int64_t block_bytes_;
  std::vector<PoolMemory> pools_;
  py::list owners_;  // of the pools' memory: it must outlive the transfers
  std::shared_ptr<kv::Store> store_;
};

}  // namespace

void define_kv_store(py::module_& m) {
  m.def("crc32c", [](const py::bytes& data) {
    const std::string_view bytes = data;
    return kv::crc32c(0, bytes.data(), bytes.size());
  });
  py::class_<kv::Batch, kv::Ticket>(m, "StoreTicket");
  py::class_<BlockStore>(m, "BlockStore")
      .def(py::init<int64_t, int64_t, int, const std::optional<std::string>&, int64_t, uint64_t, int64_t>())
      .def("attach", &BlockStore::attach)
      .def("submit", &BlockStore::submit)
      .def("insert", &BlockStore::insert)
      .def("fetch", &BlockStore::fetch)
      .def("wait", &BlockStore::wait)
      .def("statuses", &BlockStore::statuses)
      .def("where", &BlockStore::where)
      .def("found", &BlockStore::found)
      .def("dropped", &BlockStore::dropped)
      .def("settle", &BlockStore::settle)
      .def("flush", &BlockStore::flush)
      .def("failures", &BlockStore::failures)
      .def("spills_open", &BlockStore::spills_open)
      .def("counts", &BlockStore::counts)
      .def("close", &BlockStore::close);
}

}  // namespace sk
