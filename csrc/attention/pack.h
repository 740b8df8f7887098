// Gathered rows as the weights of two GEMMs: keys are columns of the first, values are rows of the second. Included
// by attend.h.

struct Fetched { const uint8_t *k[kLanes], *v[kLanes]; };  // where the rows of some keys are

static gemm::Weights weights(gemm::Format format, const uint8_t* panels, int64_t n, int64_t k) {
  gemm::Weights w{};
  w.format = format;
  w.packed = true;
  w.data = panels;
  w.n = n;
  w.k = k;
  return w;
}

// 64 bytes of a row, of which `left` belong to it; the others read as zero.
SK_INLINE I32 load_bytes(const uint8_t* p, int64_t left) {
  if (left >= gemm::kChunk) return load(reinterpret_cast<const int32_t*>(p));
  alignas(64) uint8_t bytes[gemm::kChunk] = {};
  for (int64_t i = 0; i < left; ++i) bytes[i] = p[i];
  return load(reinterpret_cast<const int32_t*>(bytes));
}

// Rows of n <= 16 keys as one vector of columns: `chunks` chunks, `stride` bytes apart.
static void pack_keys(const uint8_t* const* rows, int64_t n, int64_t bytes, int64_t chunks, uint8_t* to,
                      int64_t stride) {
  int64_t at = 0;
  for (; n == kLanes && 4 * (at + kLanes) <= bytes; at += kLanes)
    transpose_lines(rows, 4 * at, to + at * stride, stride);
  for (; at < chunks; at += kLanes) {
    I32 block[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) block[i] = i < n ? load_bytes(rows[i] + 4 * at, bytes - 4 * at) : splat_i(0);
    transpose(block);
    for (int64_t i = 0; i < min(kLanes, chunks - at); ++i)
      store(reinterpret_cast<int32_t*>(to + (at + i) * stride), block[i]);
  }
}

// The columns of values. bf16 go in blocks of 32, the even ones before the odd ones: that is the cheapest way to put
// two keys' values into pairs.
struct Place {
  uint8_t* chunk;
  int64_t stride;
};
struct Columns {
  bool pairs;
  int64_t count, padded;

  Columns(gemm::Format format, int64_t columns)
      : pairs(format == gemm::Format::bf16), count(columns), padded(round_up(columns, pairs ? 32 : kLanes)) {}
  int64_t vectors() const { return padded / kLanes; }
  int64_t steps(int64_t keys) const { return round_up(keys, 2) / (pairs ? 2 : 1); }  // along the keys
  int64_t bytes(int64_t keys) const { return vectors() * steps(keys) * gemm::kChunk; }
  // Where a vector's part of a step is, and how far the next step's is from there.
  Place place(int64_t step, int64_t vector, int64_t keys, uint8_t* panels) const {
    constexpr int64_t kVectors = gemm::kPanel / kLanes;
    const int64_t panel = vector / kVectors * kVectors, stride = min(kVectors, vectors() - panel) * gemm::kChunk;
    return {panels + panel * steps(keys) * gemm::kChunk + step * stride + (vector - panel) * gemm::kChunk, stride};
  }
};

// Values of n <= 16 keys, the first of which is number `first` of `keys`, to where they belong in the panels.
static void pack_values(const Columns& c, const uint8_t* const* rows, int64_t n, int64_t first, int64_t keys,
                        uint8_t* panels) {
  const int64_t bytes = c.count * (c.pairs ? 2 : 4), lines = ceil_div(bytes, gemm::kChunk);
  const int64_t keys_a_step = c.pairs ? 2 : 1, vectors_a_line = keys_a_step;
  const int64_t last = first + n == keys ? round_up(n, 2) : n;
  for (int64_t line = 0; line < lines; ++line) {
    const int64_t vector = line * vectors_a_line, at = line * gemm::kChunk, left = bytes - at;
    const Place to = c.place(first / keys_a_step, vector, keys, panels);
    const auto pack = [&](const auto& load_row) {
      int32_t* out = reinterpret_cast<int32_t*>(to.chunk);
      for (int64_t key = 0; key < last; key += keys_a_step, out += to.stride / 4) {
        const I32 x = load_row(key);
        if (!c.pairs) {
          store(out, x);
          continue;
        }
        const I32 y = load_row(key + 1);
        store(out, or_(and_(x, splat_i(0xffff)), shl<16>(y)));
        store(out + kLanes, or_(shr<16>(x), and_(y, splat_i(static_cast<int32_t>(0xffff0000)))));
      }
    };
    if (n == last && left >= gemm::kChunk)
      pack([&](int64_t key) { return load(reinterpret_cast<const int32_t*>(rows[key] + at)); });
    else
      pack([&](int64_t key) { return key < n ? load_bytes(rows[key] + at, left) : splat_i(0); });
  }
}

// Whether no value is infinite or NaN.
static bool all_finite(const Columns& c, int64_t keys, const uint8_t* panels) {
  const I32 exponent = splat_i(0x7f800000);
  I32 bad = splat_i(0);
  for (int64_t i = 0; i < c.bytes(keys); i += gemm::kChunk) {
    const I32 x = load(reinterpret_cast<const int32_t*>(panels + i));
    bad = select(eq(and_(x, exponent), exponent), exponent, bad);
    if (c.pairs) bad = select(eq(and_(shl<16>(x), exponent), exponent), exponent, bad);
  }
  return to_bits(eq(bad, exponent)) == 0;
}

// Zeroes the values of keys [from, to).
static void clear_values(const Columns& c, int64_t from, int64_t to, int64_t keys, uint8_t* panels) {
  for (int64_t vector = 0; vector < c.vectors(); ++vector)
    for (int64_t key = from; key < to; ++key) {
      int32_t* const at = reinterpret_cast<int32_t*>(c.place(c.pairs ? key / 2 : key, vector, keys, panels).chunk);
      const int32_t kept = !c.pairs ? 0 : key % 2 == 0 ? static_cast<int32_t>(0xffff0000) : 0xffff;
      store(at, and_(load(at), splat_i(kept)));
    }
}
