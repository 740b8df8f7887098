// Attention of tiles of queries over chunks of keys: keys are gathered and packed once for all the queries that see
// them, then come two products of matrices. Included by kernels, inside the namespace of an instruction set.
//
// A kernel's `Keys` says which keys a query sees, and where they lie:
//   gemm::Format k_format, v_format
//   int64_t tiles(), Span tile(i)      runs of queries that see the first keys of one list
//   int64_t list_size()                how many int32 open() may write
//   int64_t open(Span, int32_t* list)  how many keys are on that list
//   int64_t seen(query, keys)          how many of these the query sees
//   int64_t key_bytes()                scratch that fetch() needs for a key
//   void fetch(list, query, kv_head, first, n, Fetched*, scratch)

#include "attention/pack.h"
#include "attention/softmax.h"
#include "gemm/operand.h"

using attention::kChunk;
using attention::Queries;

struct Span { int64_t first, count; };  // of queries

// --- for the kernels' Keys

static gemm::Format format_of(Dtype t) { return t == Dtype::f32 ? gemm::Format::f32 : gemm::Format::bf16; }

static const uint8_t* row_of(const Rows<const void>& rows, Dtype dtype, int64_t row) {
  return static_cast<const uint8_t*>(rows.data) + row * rows.stride * size_of(dtype);
}

// Rows of a tile: enough to hide gathering and packing behind the products.
constexpr int64_t kMostRows = 128;

// How many queries may share a tile, if so many heads of each do.
static int64_t queries_a_tile(int64_t heads) { return max(1, kMostRows / max(heads, 1)); }

// --- tiles

// Logits of a row, a few more than a chunk's: rows a multiple of 2 KB apart would evict each other.
constexpr int64_t kLogits = kChunk + kLanes;

// Rows that see the same keys: some heads of some queries.
struct Tile {
  Span queries;
  int64_t head, heads, kv_head;

  int64_t rows() const { return queries.count * heads; }
  int64_t query(int64_t row) const { return queries.first + row / heads; }
  int64_t head_of(int64_t row) const { return head + row % heads; }
};

// The memory of one worker.
struct Buffers {
  int32_t* list;
  uint8_t *q, *keys, *values, *fetched, *gemm;
  float* logits;
  bf16* weights;  // where the instruction set multiplies bf16
  Partial state, part;
};

struct Plan {
  gemm::Format k_format, v_format;
  bool q_as_f32, p_as_f32, rounded;  // rounded: weights to bf16, the format of all that they meet
  gemm::Segments depth;              // of q and k
  Columns columns;
  int64_t head_parts, most_rows, q_stride, list_size, key_bytes;

  template <class Keys>
  Plan(const Queries& q, const Keys& keys)
      : k_format(keys.k_format),
        v_format(keys.v_format),
        q_as_f32(k_format == gemm::Format::f32 || gemm::SK_ISA::multiplies_f32(q.dtype)),
        p_as_f32(true),
        rounded(q.dtype == Dtype::bf16 && k_format == gemm::Format::bf16 && v_format == gemm::Format::bf16),
        depth(k_format, q.dk, 0),
        columns(v_format, q.dv),
        head_parts(ceil_div(q.heads / q.kv_heads, kMostRows)),
        most_rows(min(q.queries * (q.heads / q.kv_heads), kMostRows)),
        q_stride(spread_stride(depth.total())),
        list_size(keys.list_size()),
        key_bytes(keys.key_bytes()) {
    if (rounded) p_as_f32 = gemm::SK_ISA::multiplies_f32(Dtype::bf16);
  }

  int64_t key_chunks() const { return depth.total() / gemm::elements_per_chunk(k_format); }
  int64_t value_floats() const { return most_rows * columns.padded; }

  // take(bytes) for every buffer.
  template <class Take>
  Buffers buffers(const Take& take) const {
    const auto bytes = [&](int64_t n) { return static_cast<uint8_t*>(take(n)); };
    const auto floats = [&](int64_t n) { return static_cast<float*>(take(4 * n)); };
    const auto partial = [&] {
      float *const top = floats(most_rows), *const sum = floats(most_rows);
      return Partial{top, sum, floats(value_floats()), columns.padded};
    };
    Buffers b{};
    b.list = static_cast<int32_t*>(take(4 * list_size));
    b.q = bytes(most_rows * q_stride * (q_as_f32 ? 4 : 2));
    b.keys = bytes(key_chunks() * gemm::kPanel * 4);
    b.values = bytes(columns.bytes(kChunk));
    b.fetched = bytes(key_bytes * kLanes);
    b.gemm = bytes(gemm::kScratchBytes);
    b.logits = floats(most_rows * kLogits);
    b.weights = static_cast<bf16*>(take(p_as_f32 ? 0 : 2 * most_rows * kLogits));
    b.state = partial();
    b.part = partial();
    return b;
  }
  int64_t worker_bytes() const {
    int64_t total = 0;
    buffers([&](int64_t n) -> void* {
      total += round_up(n, 64);
      return nullptr;
    });
    return total;
  }
  Buffers buffers_at(uint8_t* memory) const {
    return buffers([&](int64_t n) -> void* {
      uint8_t* const p = memory;
      memory += round_up(n, 64);
      return p;
    });
  }

  Tile tile(const Queries& q, Span queries, int64_t kv_head, int64_t part) const {
    const int64_t group = q.heads / q.kv_heads, first = group * part / head_parts;
    return {queries, kv_head * group + first, group * (part + 1) / head_parts - first, kv_head};
  }
};

// The tile's rows of q, side by side.
static void load_queries(const Queries& q, const Plan& plan, const Tile& tile, uint8_t* to) {
  for (int64_t r = 0; r < tile.rows(); ++r) {
    const int64_t row = tile.query(r) * q.heads + tile.head_of(r);
    gemm::SK_ISA::prepare(static_cast<const uint8_t*>(q.q.data) + row * q.q.stride * size_of(q.dtype), q.dtype,
                          plan.depth, plan.q_as_f32, to + r * plan.q_stride * (plan.q_as_f32 ? 4 : 2));
  }
}

// Weighted sums where some rows see only the first ones of a chunk's keys, and a value is not finite: 0 times it
// would not be 0. Rows that see most go first; what the next ones do not see is cleared before their turn.
template <class Seen, class Multiply>
static void multiply_seen(const Plan& plan, const Tile& tile, int64_t keys, const Seen& seen, uint8_t* values,
                          const Multiply& multiply) {
  for (int64_t limit = keys, left = keys; limit >= 0; --limit) {
    bool any = false;
    for (int64_t i = 0; i < tile.queries.count; ++i) any = any || seen(i) == limit;
    if (!any) continue;
    clear_values(plan.columns, limit, left, keys, values);
    left = limit;
    for (int64_t i = 0; i < tile.queries.count; ++i)
      if (seen(i) == limit) multiply(i * tile.heads, tile.heads);
  }
}

// One chunk of the tile's keys.
template <class Keys>
static void attend_chunk(const Queries& q, const Keys& keys, const Plan& plan, const Tile& tile, int64_t listed,
                         int64_t chunk, const Buffers& b, const Partial& out) {
  const int64_t start = chunk * kChunk, n = min(kChunk, listed - start), rows = tile.rows();
  const gemm::Operand queries = {b.q, plan.q_as_f32, plan.q_stride, nullptr, 0, 0, nullptr};
  for (int64_t at = 0; at < n; at += gemm::kPanel) {
    const int64_t in_panel = min(gemm::kPanel, n - at), width = ceil_div(in_panel, kLanes);
    for (int64_t v = 0; v < width; ++v) {
      const int64_t first = at + v * kLanes, count = min(kLanes, n - first);
      Fetched rows_of;
      keys.fetch(b.list, tile.queries.first, tile.kv_head, start + first, count, &rows_of, b.fetched);
      pack_keys(rows_of.k, count, gemm::bytes_of(plan.k_format, q.dk), plan.key_chunks(), b.keys + v * gemm::kChunk,
                width * gemm::kChunk);
      pack_values(plan.columns, rows_of.v, count, first, n, b.values);
    }
    gemm::SK_ISA::multiply(weights(plan.k_format, b.keys, in_panel, q.dk), queries, rows, 0, width, b.logits + at,
                           kLogits, b.gemm);
  }

  const auto seen = [&](int64_t i) { return max(0, min(n, keys.seen(tile.queries.first + i, listed) - start)); };
  bool ragged = false;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t count = seen(r / tile.heads);
    float* const logits = b.logits + r * kLogits;
    ragged = ragged || count < n;
    if (plan.p_as_f32)
      weigh(logits, count, n, splat(q.scale), logits, plan.rounded, out.top + r, out.sum + r);
    else
      weigh(logits, count, n, splat(q.scale), b.weights + r * kLogits, true, out.top + r, out.sum + r);
  }

  const gemm::Weights values = weights(plan.v_format, b.values, plan.columns.padded, n);
  const gemm::Operand p = {
      plan.p_as_f32 ? static_cast<const void*>(b.logits) : b.weights, plan.p_as_f32, kLogits, nullptr, 0, 0, nullptr};
  const auto multiply = [&](int64_t row, int64_t count) {
    gemm::SK_ISA::multiply(values, rows_from(p, row), count, 0, plan.columns.vectors(), out.values + row * out.stride,
                           out.stride, b.gemm);
  };
  if (ragged && !all_finite(plan.columns, n, b.values))
    multiply_seen(plan, tile, n, seen, b.values, multiply);
  else
    multiply(0, rows);
}

static void finish_row(const Queries& q, const Plan& plan, const Tile& tile, const Partial& p, int64_t r) {
  const int64_t query = tile.query(r), head = tile.head_of(r), row = query * q.heads + head;
  const Result result = finish(p.top[r], p.sum[r], q.sink != nullptr ? q.sink + head : nullptr);
  q.lse[(query / q.steps * q.heads + head) * q.steps + query % q.steps] = result.lse;
  if (q.max_logits != nullptr) q.max_logits[row] = result.max_logit;
  with_float_type(q.dtype, [&](auto type) {
    auto* const out = static_cast<decltype(type)*>(q.out) + row * q.dv;
    if (p.sum[r] == 0.0f)
      map_row(out, out, q.dv, [&](int64_t, auto) { return splat(0.0f); });
    else
      store_values(plan.columns, p.values + r * p.stride, splat(result.factor), out);
  });
}

// Few tiles: their chunks are spread over the workers, some at a time, and added in order after each time.
template <class Keys, class TileAt>
static void attend_few(const Queries& q, const Keys& keys, const Plan& plan, int64_t tiles, const TileAt& tile_at,
                       uint8_t* workers, Scratch& scratch) {
  const int64_t per_worker = plan.worker_bytes(), slots = 2 * threads();
  int64_t *const listed = scratch.take<int64_t>(tiles), *const first = scratch.take<int64_t>(tiles + 1);
  Partial* const sums = scratch.take<Partial>(tiles + slots);  // the tiles' own, then those of chunks to be added
  for (int64_t i = 0; i < tiles + slots; ++i)
    sums[i] = {scratch.take<float>(plan.most_rows), scratch.take<float>(plan.most_rows),
               scratch.take<float>(plan.value_floats()), plan.columns.padded};
  first[0] = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    listed[t] = keys.open(tile_at(t).queries, plan.buffers_at(workers).list);
    first[t + 1] = first[t] + ceil_div(listed[t], kChunk);
    for (int64_t r = 0; r < plan.most_rows; ++r) sums[t].sum[r] = 0.0f;
  }

  for (int64_t done = 0; done < first[tiles]; done += slots) {
    const int64_t last = min(done + slots, first[tiles]);
    parallel_for(last - done, [&](int64_t i, int worker) {
      int64_t t = 0;
      while (first[t + 1] <= done + i) ++t;
      const int64_t chunk = done + i - first[t];
      const Tile tile = tile_at(t);
      const Buffers b = plan.buffers_at(workers + worker * per_worker);
      keys.open(tile.queries, b.list);
      load_queries(q, plan, tile, b.q);
      attend_chunk(q, keys, plan, tile, listed[t], chunk, b, chunk == 0 ? sums[t] : sums[tiles + i]);
    });
    parallel_rows(tiles * plan.most_rows, 8 * plan.columns.padded, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t t = i / plan.most_rows, r = i % plan.most_rows;
        if (r >= tile_at(t).rows()) continue;
        for (int64_t c = max(done, first[t] + 1); c < min(last, first[t + 1]); ++c)
          fold(sums[t], sums[tiles + c - done], r, plan.columns.padded);
      }
    });
  }
  parallel_rows(tiles * plan.most_rows, 8 * plan.columns.padded, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t t = i / plan.most_rows, r = i % plan.most_rows;
      if (const Tile tile = tile_at(t); r < tile.rows()) finish_row(q, plan, tile, sums[t], r);
    }
  });
}

// There is at least one query, with at least one head.
template <class Keys>
static void attend(const Queries& q, const Keys& keys) {
  Scratch scratch;
  const Plan plan(q, keys);
  const int64_t spans = keys.tiles(), tiles = spans * q.kv_heads * plan.head_parts;
  const int64_t per_worker = plan.worker_bytes();
  uint8_t* const workers = scratch.take<uint8_t>(per_worker * threads());
  // Heads of a query that share keys are neighbours, then queries that may share some.
  const auto tile_at = [&](int64_t i) {
    return plan.tile(q, keys.tile(i / plan.head_parts % spans), i / plan.head_parts / spans, i % plan.head_parts);
  };
  if (threads() > 1 && tiles < 2 * threads()) return attend_few(q, keys, plan, tiles, tile_at, workers, scratch);

  parallel_for(tiles, [&](int64_t i, int worker) {
    const Tile tile = tile_at(i);
    const Buffers b = plan.buffers_at(workers + worker * per_worker);
    const int64_t listed = keys.open(tile.queries, b.list);
    load_queries(q, plan, tile, b.q);
    for (int64_t r = 0; r < tile.rows() && listed == 0; ++r) b.state.sum[r] = 0.0f;
    for (int64_t chunk = 0; chunk * kChunk < listed; ++chunk) {
      attend_chunk(q, keys, plan, tile, listed, chunk, b, chunk == 0 ? b.state : b.part);
      for (int64_t r = 0; r < tile.rows() && chunk > 0; ++r) fold(b.state, b.part, r, plan.columns.padded);
    }
    for (int64_t r = 0; r < tile.rows(); ++r) finish_row(q, plan, tile, b.state, r);
  });
}
