// Errors and kernels by name; and what device.py calls.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>

#include "core.h"

namespace model {

Mutation mutation;

namespace {

struct Error {
  std::string kind, text, file;
  int line, source_line;
};
std::vector<Error> errors;
uint64_t total = 0;
std::map<std::pair<std::string, int>, int> seen;
constexpr int kShown = 3;  // of one kind at one line

std::map<std::string, const Kernel*>& kernels() {
  static std::map<std::string, const Kernel*> all;
  return all;
}

std::string quoted(const std::string& s) {
  std::string r = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') r += '\\';
    r += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return r + '"';
}

}  // namespace

void report(const char* kind, int line, const char* format, ...) {
  ++total;
  if (++seen[{kind, line}] > kShown) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::string where;
  if (current != nullptr && current->block != nullptr) {
    const Dim3 b = current->block->index;
    char at[96];
    snprintf(at, sizeof at, ", by thread %u of block (%u, %u, %u)", current->number, b.x, b.y, b.z);
    where = at;
  }
  Error e = {kind, text + where, "", line, 0};
  if (launching.kernel != nullptr)
    for (const int (*l)[3] = launching.kernel->lines; (*l)[0] != 0; ++l)
      if ((*l)[0] == line) {
        e.file = launching.kernel->files[(*l)[1]];
        e.source_line = (*l)[2];
      }
  errors.push_back(e);
}

uint64_t error_count() { return total; }

std::string take_errors() {
  std::string r = "[";
  for (const Error& e : errors)
    r += (r.size() > 1 ? ",\n" : "") + ("{\"kind\": " + quoted(e.kind)) + ", \"text\": " + quoted(e.text) +
         ", \"ptx_line\": " + std::to_string(e.line) + ", \"file\": " + quoted(e.file) +
         ", \"line\": " + std::to_string(e.source_line) + "}";
  errors.clear();
  seen.clear();
  total = 0;
  return r + "]";
}

void define_kernel(const Kernel* k) { kernels()[k->name] = k; }
const Kernel* find_kernel(const char* name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

bool start_kernel(const Kernel& k, Dim3 grid, Dim3 block, Dim3 cluster, uint32_t dynamic_shared, void** arguments) {
  Launch l = {&k, grid, block, cluster.x != 0 ? cluster : k.cluster, dynamic_shared, {}};
  const uint32_t threads = block.x * block.y * block.z, shared = k.static_shared + dynamic_shared;
  const bool divides = grid.x % l.cluster.x == 0 && grid.y % l.cluster.y == 0 && grid.z % l.cluster.z == 0;
  if (threads == 0 || threads > 1024 || (k.max_threads != 0 && threads > k.max_threads) || !divides || grid.x == 0 ||
      grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      shared > (227u << 10)) {
    report("launch", 0, "%s with grid (%u, %u, %u), block (%u, %u, %u), %u bytes of shared memory", k.name, grid.x,
           grid.y, grid.z, block.x, block.y, block.z, shared);
    return false;
  }
  uint32_t bytes = 0;
  for (const auto& [offset, size] : k.parameters) bytes = offset + size;
  l.parameters.resize(bytes);
  for (size_t i = 0; i < k.parameters.size(); ++i)
    memcpy(l.parameters.data() + k.parameters[i].first, arguments[i], k.parameters[i].second);
  run(l);
  current = nullptr;
  return true;
}

}  // namespace model

using namespace model;

extern "C" {

void model_set(int checking, int policy, uint64_t seed, uint64_t rounding, int truncating) {
  settings = {checking != 0, static_cast<Policy>(policy), seed, rounding, truncating != 0};
}
// Null: nothing is mutated. False: there is no such kernel.
int model_mutate(const char* kernel, int line, int weakened) {
  mutation = {kernel != nullptr ? find_kernel(kernel) : nullptr, line, weakened != 0, 0};
  return kernel == nullptr || mutation.kernel != nullptr;
}
uint64_t model_mutation_reached() { return mutation.reached; }
void* model_allocate(size_t bytes) { return allocate(bytes); }
void model_free_everything() { free_everything(); }
void model_initialised(void* p, size_t bytes, int on) {
  on ? mark_initialised(p, bytes) : mark_uninitialised(p, bytes);
}
void model_allow(void* p, size_t bytes, int valid) { allow(static_cast<uint8_t*>(p), bytes, valid != 0); }
size_t model_uninitialised(const void* p, size_t bytes) {
  return uninitialised_bytes(static_cast<const uint8_t*>(p), bytes);
}
uint64_t model_error_count() { return error_count(); }
const char* model_take_errors() {
  static std::string text;
  text = take_errors();
  return text.c_str();
}
void model_counters(uint64_t* out) { memcpy(out, &counters, sizeof counters); }

int model_launch(const char* name, const uint32_t* grid, const uint32_t* block, const uint32_t* cluster,
                 uint32_t dynamic_shared, void** arguments) {
  const Kernel* k = find_kernel(name);
  if (k == nullptr) return 0;
  const Dim3 of_cluster = cluster != nullptr ? Dim3{cluster[0], cluster[1], cluster[2]} : Dim3{0, 0, 0};
  return start_kernel(*k, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, of_cluster, dynamic_shared,
                      arguments);
}
}
