// Scores of keys, 64 at a time: a GEMM of all heads of some queries with them, whose sums are then weighed. Included
// by kernels, inside the namespace of an instruction set.

using indexer::Buffers;
using indexer::Group;
using indexer::Keys;
using indexer::kTile;
using indexer::Memory;
using indexer::Plan;
using indexer::Problem;
using indexer::Queries;
using indexer::Range;

constexpr float kNoScore = -__builtin_inff();

static Plan plan_for(const Problem& p, int64_t most_queries = INT64_MAX) {
  return indexer::make_plan(p, gemm::SK_ISA::multiplies_f32(p.queries.dtype), most_queries);
}

// From the first to the last key that one of them sees.
static Range seen_by(const Problem& p, const Group& g) {
  Range seen = {INT32_MAX, 0};
  for (int64_t r = g.first; r < g.first + g.count; ++r) {
    if (p.ranges[r].size() == 0) continue;
    seen.first = static_cast<int32_t>(min(seen.first, p.ranges[r].first));
    seen.last = static_cast<int32_t>(max(seen.last, p.ranges[r].last));
  }
  return seen.first < seen.last ? seen : Range{0, 0};
}

// --- queries

template <class T>
static void decode_query(const Queries& q, const Plan& plan, const uint8_t* from, T* to) {
  if (q.dtype == Dtype::e4m3)
    decode_row(E4m3{}, from, q.dim, 1.0f, to);
  else if (q.dtype == Dtype::u8)
    decode_row(E2m1{}, from, q.dim, 1.0f, to);
  else
    return gemm::SK_ISA::prepare(from, q.dtype, plan.depth, plan.as_f32, to);
  for (int64_t i = q.dim; i < plan.depth.total(); ++i) to[i] = T{};
}
// Makes the rows of a group ready for the GEMM.
static void take_queries(const Plan& plan, const Queries& q, const Group& g, const Buffers& b) {
  for (int64_t r = 0; r < g.count * q.heads; ++r) {
    const int64_t row = g.first * q.heads + r;
    with_float_type(plan.as_f32 ? Dtype::f32 : Dtype::bf16, [&](auto type) {
      decode_query(q, plan, q.data + row * q.stride, reinterpret_cast<decltype(type)*>(b.rows) + r * plan.stride);
    });
    for (int64_t s = 0; s < plan.scales; ++s)
      b.row_scales[r * plan.scales + s] = load_scale(q.scale.data, Dtype::e8m0, row * q.scale.stride + s);
  }
}

// --- keys

struct TileOfKeys {
  const uint8_t* data;
  int64_t stride;
  const uint8_t* scale;
};
// Where a key and those after it lie.
static const uint8_t* place_of(const Keys& k, int64_t sequence, int64_t key) {
  if (k.table == nullptr) return k.data + key * k.stride;
  const int64_t page = k.table[sequence * k.table_stride + key / k.page_size];
  return k.data + page * k.page_bytes + key % k.page_size * k.stride;
}
static TileOfKeys fetch_keys(const Keys& k, int64_t sequence, int64_t first, int64_t n, const Buffers& b) {
  if (k.table == nullptr)
    return {k.data + first * k.stride, k.stride, k.scale_bytes == 0 ? nullptr : k.scale + first * k.scale_bytes};
  for (int64_t i = 0, run; i < n; i += run) {
    const int64_t place = (first + i) % k.page_size;
    const uint8_t* const page =
        k.data + k.table[sequence * k.table_stride + (first + i) / k.page_size] * k.page_bytes;
    run = min(n - i, k.page_size - place);
    __builtin_memcpy(b.keys + i * k.stride, page + place * k.stride, static_cast<size_t>(run * k.stride));
    for (int64_t j = 0; j < run; ++j)
      __builtin_memcpy(b.key_scales + (i + j) * k.scale_bytes,
                       page + k.page_size * k.stride + (place + j) * k.page_scale_bytes,
                       static_cast<size_t>(k.scale_bytes));
  }
  return {b.keys, k.stride, k.scale_bytes == 0 ? nullptr : b.key_scales};
}

// --- scores

// One query's scores of keys [first, first + 16 * kVectors) from the sums of its heads.
template <int kVectors>
static void weigh(const float* sums, int64_t heads, const float* weights, const float* scale, int64_t n,
                  int64_t first, Range seen, float* scores) {
  F32 total[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) total[v] = splat(0.0f);
  for (int64_t h = 0; h < heads; ++h, sums += kTile)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      total[v] = fma(max(splat(0.0f), load(sums + v * kLanes)), splat(weights[h]), total[v]);  // NaN passes
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = v * kLanes;
    F32 x = total[v];
    if (scale != nullptr) x = mul(x, load(scale + at, n - at));
    const I32 key = add(lane_numbers(), splat_i(static_cast<int32_t>(first + at)));
    x = select(gt(splat_i(seen.first), key), splat(kNoScore), one_nan(x));
    store(scores + at, select(gt(splat_i(seen.last), key), x, splat(kNoScore)));
  }
}

// Scores of the group's queries for the first kTile of keys [first, last), to b.scores; -inf where one sees no key.
static void score_tile(const Plan& plan, const Problem& p, const Group& g, int64_t first, int64_t last,
                       const Buffers& b) {
  const Queries& q = p.queries;
  const int64_t n = min(kTile, last - first);
  const TileOfKeys keys = fetch_keys(p.keys, g.sequence, first, n, b);
  gemm::Weights w{};
  w.format = plan.format;
  w.data = keys.data;
  w.row_bytes = keys.stride;
  if (first + n < last) w.next = place_of(p.keys, g.sequence, first + n);
  w.n = n;
  w.k = q.dim;
  if (plan.scales > 0) {
    w.scale = keys.scale;
    w.scale_dtype = Dtype::e8m0;
    w.block_n = 1;
    w.block_k = indexer::kFp4Group;
  }
  const gemm::Operand rows = {.data = b.rows,
                              .is_f32 = plan.as_f32,
                              .stride = plan.stride,
                              .scale = plan.scales > 0 ? b.row_scales : nullptr,
                              .scale_stride = plan.scales,
                              .group = indexer::kFp4Group,
                              .index = nullptr};
  const int64_t vectors = ceil_div(n, kLanes);
  gemm::SK_ISA::multiply(w, rows, g.count * q.heads, 0, vectors, b.sums, kTile, b.gemm);

  const float* const scale = plan.scales > 0 ? nullptr : reinterpret_cast<const float*>(keys.scale);
  constexpr decltype(&weigh<1>) kWeigh[] = {&weigh<1>, &weigh<2>, &weigh<3>, &weigh<4>};
  for (int64_t i = 0; i < g.count; ++i)
    kWeigh[vectors - 1](b.sums + i * q.heads * kTile, q.heads, q.weights.data + (g.first + i) * q.weights.stride,
                        scale, n, first, p.ranges[g.first + i], b.scores + i * kTile);
}
