// Rows of weights to chunks and back. Included by csrc/gemm/cpu.cpp only, inside the namespace of an instruction set.

// Four consecutive bytes of each of 16 rows -> a chunk as the decoders want it, and its inverse.
SK_INLINE I32 finish_chunk(Format f, I32 x) {
  if (f == Format::e4m3) return to_kernel_order(x);
  if (f != Format::e2m1) return x;
  // Eight nibbles, k ascending -> the even ones in the low half, the odd ones in the high half.
  const auto gather = [](I32 y) {  // nibbles 0, 2, 4, 6 -> the low 16 bits
    y = and_(y, splat_i(0x0f0f0f0f));
    y = and_(or_(y, shr<4>(y)), splat_i(0x00ff00ff));
    return and_(or_(y, shr<8>(y)), splat_i(0xffff));
  };
  return or_(gather(x), shl<16>(gather(shr<4>(x))));
}
SK_INLINE I32 undo_chunk(Format f, I32 x) {
  if (f == Format::e4m3) return from_kernel_order(x);
  if (f != Format::e2m1) return x;
  const auto spread = [](I32 y) {  // the low 16 bits -> nibbles 0, 2, 4, 6
    y = and_(y, splat_i(0xffff));
    y = and_(or_(y, shl<8>(y)), splat_i(0x00ff00ff));
    return and_(or_(y, shl<4>(y)), splat_i(0x0f0f0f0f));
  };
  return or_(spread(x), shl<4>(spread(shr<16>(x))));
}

// The 64 bytes at p of which `n` belong to the row; the others read as zero.
SK_INLINE I32 load_row(const uint8_t* p, int64_t n) {
  if (n >= 64) return load(reinterpret_cast<const int32_t*>(p));
  alignas(64) uint8_t bytes[64] = {};
  for (int64_t i = 0; i < n; ++i) bytes[i] = p[i];
  return load(reinterpret_cast<const int32_t*>(bytes));
}

// k in [from, to) of some vectors, as chunks [chunk][vector].
static void pack_piece(const Weights& w, int64_t first_vector, int64_t vectors, int64_t from, int64_t to,
                       uint8_t* out) {
  const int64_t bytes = bytes_of(w.format, to - from);
  const int64_t chunks = round_up(to - from, w.segments().unit) / elements_per_chunk(w.format);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t row = (first_vector + v) * kLane, have = min(kLane, w.n - row);
    const uint8_t* const p = w.data + row * w.row_bytes + bytes_of(w.format, from);
    for (int64_t chunk = 0; chunk < chunks; chunk += kLane) {
      I32 block[kLane];
      const int64_t left = bytes - 4 * chunk;
      for (int64_t i = 0; i < kLane; ++i)
        block[i] = i < have ? load_row(p + i * w.row_bytes + 4 * chunk, left) : splat_i(0);
      transpose(block);
      for (int64_t i = 0; i < min(kLane, chunks - chunk); ++i)
        store(reinterpret_cast<int32_t*>(out + ((chunk + i) * vectors + v) * kChunk),
              finish_chunk(w.format, block[i]));
    }
  }
}

// n elements from k = begin of one vector, back into the rows of `to`.
static void unpack_segment(const Weights& w, int64_t vector, int64_t begin, int64_t n, const uint8_t* chunks,
                           int64_t stride, uint8_t* to, int64_t row_bytes) {
  const int64_t row = vector * kLane, have = min(kLane, w.n - row), bytes = bytes_of(w.format, n);
  uint8_t* const p = to + row * row_bytes + bytes_of(w.format, begin);
  for (int64_t done = 0; done < bytes; done += 64) {
    I32 block[kLane];
    const int64_t left = min(64, bytes - done);
    for (int64_t i = 0; i < kLane; ++i)
      block[i] = 4 * i < left
                     ? undo_chunk(w.format, load(reinterpret_cast<const int32_t*>(chunks + (done / 4 + i) * stride)))
                     : splat_i(0);
    transpose(block);
    for (int64_t i = 0; i < have; ++i) {
      alignas(64) uint8_t line[64];
      store(reinterpret_cast<int32_t*>(line), block[i]);
      for (int64_t b = 0; b < left; ++b) p[i * row_bytes + done + b] = line[b];
    }
  }
}

// 16 codes of e4m3 as floats, looked up; only the first n are read.
SK_INLINE F32 widen_e4m3(const uint8_t* p, int64_t n) {
  alignas(64) uint16_t words[kLane] = {};
  for (int64_t i = 0; i < min(n, kLane); ++i)
    words[i] = static_cast<uint16_t>(simd::kBf16OfE4m3[p[i] & 0x7f] | (p[i] & 0x80) << 8);
  return load(reinterpret_cast<const bf16*>(words));
}
