#include "kv/store/disk.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <unordered_map>

#include "kv/store/checksum.h"

namespace sk::kv {
namespace {

constexpr char kMagic[8] = {'S', 'K', 'K', 'V', 'B', 'L', 'K', '\n'};
constexpr uint32_t kVersion = 1;
// Bytes that are checked right after they were read, or right before they are written: while a cache holds them.
constexpr int64_t kPiece = 256 << 10;

// All of it, or false: then errno says why, 0 that the file ends before.
bool write_all(int file, const char* data, int64_t size, int64_t offset) {
  while (size > 0) {
    const ssize_t n = pwrite(file, data, static_cast<size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      if (n == 0) errno = EIO;
      return false;
    }
    data += n;
    size -= n;
    offset += n;
  }
  return true;
}

bool read_all(int file, std::vector<iovec> to, int64_t offset) {
  for (size_t first = 0; first < to.size();) {
    if (to[first].iov_len == 0) {
      ++first;
      continue;
    }
    ssize_t n = preadv(file, &to[first], static_cast<int>(to.size() - first), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      if (n == 0) errno = 0;
      return false;
    }
    offset += n;
    for (; n > 0 && first < to.size(); ++first) {
      const auto part = std::min(static_cast<size_t>(n), to[first].iov_len);
      to[first].iov_base = static_cast<char*>(to[first].iov_base) + part;
      to[first].iov_len -= part;
      n -= static_cast<ssize_t>(part);
      if (to[first].iov_len > 0) break;
    }
  }
  return true;
}

std::string error_text() { return std::strerror(errno); }

}  // namespace

struct Disk::Header {
  char magic[8];
  uint32_t version;
  uint32_t check;  // of the header, with 0 here
  uint64_t kind;
  Key key;
  uint64_t bytes;
  uint32_t block_check;
  uint32_t unused;
  uint64_t number;

  uint32_t checksum() const {
    Header copy = *this;
    copy.check = 0;
    return crc32c(0, &copy, sizeof copy);
  }
};

Disk::Disk(Options options) : options_(std::move(options)) {
  static_assert(sizeof(Header) == 64 && std::is_trivially_copyable_v<Header>);
  if (options_.block_bytes < 1 || options_.slots < 1)
    throw StoreError("a disk tier needs blocks of at least 1 byte, and at least 1 of them");
  constexpr int64_t kAlign = 64;
  slot_bytes_ = (static_cast<int64_t>(sizeof(Header)) + options_.block_bytes + kAlign - 1) / kAlign * kAlign;
  segment_slots_ = std::max<int64_t>(1, options_.segment_bytes / slot_bytes_);
  files_.assign(static_cast<size_t>((options_.slots + segment_slots_ - 1) / segment_slots_), -1);
  try {
    lock();
    recover();
  } catch (...) {
    for (const int file : files_)
      if (file >= 0) close(file);
    if (lock_ >= 0) close(lock_);
    throw;
  }
}

Disk::~Disk() {
  for (const int file : files_)
    if (file >= 0) close(file);
  close(lock_);
}

// The lock file also says what the blocks are, with a checksum: a line that is no good says nothing.
void Disk::lock() {
  const std::string path = options_.folder + "/lock";
  std::error_code failed;
  std::filesystem::create_directories(options_.folder, failed);
  lock_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) throw StoreError("cannot open " + path + ": " + error_text());
  char text[256] = {};
  const ssize_t size = pread(lock_, text, sizeof text - 1, 0);
  long long bytes = 0, kind = 0, pid = 0;
  unsigned check = 0;
  const bool told = size > 0 && std::sscanf(text, "blocks of %lld bytes, kind %llx, by process %lld, check %x",
                                            &bytes, reinterpret_cast<unsigned long long*>(&kind), &pid, &check) == 4;
  const auto line = [](int64_t bytes_, uint64_t kind_, int64_t pid_) {
    char s[200];
    std::snprintf(s, sizeof s, "blocks of %lld bytes, kind %llx, by process %lld", static_cast<long long>(bytes_),
                  static_cast<unsigned long long>(kind_), static_cast<long long>(pid_));
    return std::string(s);
  };
  const std::string old = line(bytes, static_cast<uint64_t>(kind), pid);
  const bool good = told && check == crc32c(0, old.data(), old.size());
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0)
    throw StoreError(options_.folder + " is in use" + (good ? " by process " + std::to_string(pid) : "") +
                     ": one cache at a time keeps its blocks in a folder");
  if (good && (bytes != options_.block_bytes || static_cast<uint64_t>(kind) != options_.kind))
    throw StoreError(options_.folder + " holds " + std::string(old, 0, old.find(", by")) + ", expected " +
                     std::string(line(options_.block_bytes, options_.kind, 0), 0,
                                 line(options_.block_bytes, options_.kind, 0).find(", by")) +
                     ": choose another folder, or delete this one");
  std::string mine = line(options_.block_bytes, options_.kind, getpid());
  char ending[32];
  std::snprintf(ending, sizeof ending, ", check %x\n", crc32c(0, mine.data(), mine.size()));
  mine += ending;
  if (ftruncate(lock_, 0) == 0)  // on a full disk it is locked all the same
    (void)write_all(lock_, mine.data(), static_cast<int64_t>(mine.size()), 0);
}

std::string Disk::path_of(int64_t segment) const {
  char name[40];
  std::snprintf(name, sizeof name, "/segment-%06lld", static_cast<long long>(segment));
  return options_.folder + name;
}

int Disk::file_of(int64_t slot, bool create) {
  const std::lock_guard locked(mutex_);
  int& file = files_[static_cast<size_t>(slot / segment_slots_)];
  if (file < 0)
    file = open(path_of(slot / segment_slots_).c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0644);
  return file;
}

void Disk::recover() {
  for (const auto& entry : std::filesystem::directory_iterator(options_.folder)) {
    const std::string name = entry.path().filename().string();
    long long segment = -1;
    if (std::sscanf(name.c_str(), "segment-%lld", &segment) != 1 || segment < 0) continue;
    if (segment >= static_cast<long long>(files_.size()) || entry.path().string() != path_of(segment)) {
      unlink(entry.path().c_str());  // of a cache that was larger
      continue;
    }
    recover_segment(segment, entry.path().string());
  }
  // Of a key that is there twice, the later one counts.
  std::ranges::sort(found_, {}, &Found::number);
  struct Hash {
    size_t operator()(const Key& k) const { return k.low ^ k.high * 0x9e3779b97f4a7c15u; }
  };
  std::unordered_map<Key, size_t, Hash> last;
  for (size_t i = 0; i < found_.size(); ++i) last[found_[i].key] = i;
  std::vector<Found> kept;
  for (size_t i = 0; i < found_.size(); ++i)
    if (last[found_[i].key] == i)
      kept.push_back(found_[i]);
    else
      clear(found_[i].slot);
  found_ = std::move(kept);
  if (!found_.empty()) number_ = found_.back().number;
}

void Disk::recover_segment(int64_t segment, const std::string& path) {
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat about{};
  if (file < 0 || fstat(file, &about) != 0) throw StoreError("cannot open " + path + ": " + error_text());
  files_[static_cast<size_t>(segment)] = file;
  for (int64_t i = 0; i < segment_slots_ && i * slot_bytes_ < about.st_size; ++i) {
    const int64_t slot = segment * segment_slots_ + i;
    Header h{};
    const bool read = read_all(file, {{&h, sizeof h}}, i * slot_bytes_);
    const bool whole = i * slot_bytes_ + static_cast<int64_t>(sizeof h) + options_.block_bytes <= about.st_size;
    if (read && whole && slot < options_.slots && std::memcmp(h.magic, kMagic, sizeof kMagic) == 0 &&
        h.version == kVersion && h.check == h.checksum() && h.kind == options_.kind &&
        h.bytes == static_cast<uint64_t>(options_.block_bytes)) {
      found_.push_back({h.key, slot, h.number});
      continue;
    }
    const auto* bytes = reinterpret_cast<const char*>(&h);
    if (read && std::all_of(bytes, bytes + sizeof h, [](char c) { return c == 0; })) continue;  // cleared
    ++dropped_;
    if (slot < options_.slots) clear(slot);
  }
}

Status Disk::write(int64_t slot, const Key& key, const char* block) {
  const int file = file_of(slot, true);
  if (file < 0) return Status::io_error;
  Header h{};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.version = kVersion;
  h.kind = options_.kind;
  h.key = key;
  h.bytes = static_cast<uint64_t>(options_.block_bytes);
  int64_t offset = offset_of(slot) + static_cast<int64_t>(sizeof h);
  for (int64_t done = 0; done < options_.block_bytes; done += kPiece) {
    const int64_t n = std::min(kPiece, options_.block_bytes - done);
    h.block_check = crc32c(h.block_check, block + done, static_cast<size_t>(n));
    if (!write_all(file, block + done, n, offset + done)) return Status::io_error;
  }
  {
    const std::lock_guard locked(mutex_);
    h.number = ++number_;
  }
  h.check = h.checksum();
  if (write_all(file, reinterpret_cast<const char*>(&h), sizeof h, offset_of(slot))) return Status::ok;
  clear(slot);
  return Status::io_error;
}

Status Disk::read(int64_t slot, const Key& key, const std::vector<Span>& to) {
  const int file = file_of(slot, false);
  if (file < 0) return Status::io_error;
  Header h{};
  const auto failed = [] { return errno == 0 ? Status::corrupt : Status::io_error; };  // a file that ends is torn
  if (!read_all(file, {{&h, sizeof h}}, offset_of(slot))) return failed();
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0 || h.version != kVersion || h.check != h.checksum() ||
      h.kind != options_.kind || h.key != key || h.bytes != static_cast<uint64_t>(options_.block_bytes))
    return Status::corrupt;
  uint32_t check = 0;
  int64_t offset = offset_of(slot) + static_cast<int64_t>(sizeof h);
  for (size_t span = 0, within = 0; span < to.size();) {
    std::vector<iovec> piece;
    for (int64_t size = 0; span < to.size() && size < kPiece && piece.size() < 64;) {
      const int64_t n = std::min<int64_t>(to[span].bytes - static_cast<int64_t>(within), kPiece - size);
      piece.push_back({to[span].data + within, static_cast<size_t>(n)});
      size += n;
      within += static_cast<size_t>(n);
      if (static_cast<int64_t>(within) == to[span].bytes) {
        ++span;
        within = 0;
      }
    }
    if (!read_all(file, piece, offset)) return failed();
    for (const iovec& part : piece) {
      check = crc32c(check, part.iov_base, part.iov_len);
      offset += static_cast<int64_t>(part.iov_len);
    }
  }
  return check == h.block_check ? Status::ok : Status::corrupt;
}

// Where that fails, the block is there again after a restart: the right one, under its own key.
void Disk::clear(int64_t slot) {
  const Header none{};
  const int file = file_of(slot, false);
  if (file >= 0) (void)write_all(file, reinterpret_cast<const char*>(&none), sizeof none, offset_of(slot));
}

bool Disk::flush() {
  const std::lock_guard locked(mutex_);
  bool good = true;
  for (const int file : files_)
    if (file >= 0) good &= fdatasync(file) == 0;
  return good;
}

}  // namespace sk::kv
