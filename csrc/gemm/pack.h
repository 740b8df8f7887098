// Rows of weights to chunks and back. Included by csrc/gemm/cpu.cpp only, inside the namespace of an instruction set.

// Four consecutive bytes of each of 16 rows -> a chunk as the decoders want it, and its inverse.
SK_INLINE I32 finish_chunk(Format f, I32 x) {
  if (f == Format::e4m3) return to_kernel_order(x);
  if (f != Format::e2m1) return x;
  // Eight nibbles, k ascending -> bytes (0, 2), (1, 3), (4, 6), (5, 7): two pairs in the low halves of two bytes, two
  // in the high ones.
  const auto gather = [](I32 y) {  // nibbles 0 and 2, 4 and 6 -> every other byte
    y = and_(y, splat_i(0x0f0f0f0f));
    return and_(or_(y, shr<4>(y)), splat_i(0x00ff00ff));
  };
  return to_kernel_order(or_(gather(x), shl<8>(gather(shr<4>(x)))));
}
SK_INLINE I32 undo_chunk(Format f, I32 x) {
  if (f != Format::e4m3 && f != Format::e2m1) return x;
  x = from_kernel_order(x);
  if (f == Format::e4m3) return x;
  const auto spread = [](I32 y) {  // every other byte -> nibbles 0 and 2, 4 and 6
    y = and_(y, splat_i(0x00ff00ff));
    return and_(or_(y, shl<4>(y)), splat_i(0x0f0f0f0f));
  };
  return or_(spread(x), shl<4>(spread(shr<8>(x))));
}

// The 64 bytes at p of which `n` belong to the row; the others read as zero.
SK_INLINE I32 load_row(const uint8_t* p, int64_t n) {
  if (n >= 64) return load(reinterpret_cast<const int32_t*>(p));
  alignas(64) uint8_t bytes[64] = {};
  for (int64_t i = 0; i < n; ++i) bytes[i] = p[i];
  return load(reinterpret_cast<const int32_t*>(bytes));
}

// The masks of a chunk, k in [k, k + 4) of `columns` columns from `row` on. Columns past the last one have no values;
// their masks have two bits like any other.
SK_INLINE void pack_masks(const Weights& w, int64_t row, int64_t columns, int64_t k, uint8_t* out) {
  const uint8_t* const p = w.masks + row * w.mask_bytes() + k / 8;
  const auto mask = [&](int64_t column) { return column < columns ? p[column * w.mask_bytes()] >> (k % 8) & 15 : 3; };
  for (int64_t i = 0; i < kLane / 2; ++i) out[i] = static_cast<uint8_t>(mask(2 * i) | mask(2 * i + 1) << 4);
}

// k in [from, to) of some vectors, as chunks [chunk][vector].
static void pack_piece(const Weights& w, int64_t first_vector, int64_t vectors, int64_t from, int64_t to,
                       uint8_t* out) {
  const int64_t bytes = bytes_of(w.format, to - from), stride = vectors * chunk_bytes(w.format);
  const int64_t chunks = round_up(to - from, w.segments().unit) / elements_per_chunk(w.format);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t row = (first_vector + v) * kLane, have = min(kLane, w.n - row);
    const uint8_t* const p = w.data + row * w.row_bytes + bytes_of(w.format, from);
    uint8_t* const chunk = out + v * chunk_bytes(w.format);
    const auto to_chunk = [&](int64_t i) { return reinterpret_cast<int32_t*>(chunk + i * stride); };
    const uint8_t* rows[kLane];
    for (int64_t i = 0; i < kLane; ++i) rows[i] = p + min(i, have - 1) * w.row_bytes;
    for (int64_t done = 0; done < bytes; done += 64) {
      if (have == kLane && bytes - done >= 64 && !is_2to4(w.format)) {
        transpose_lines(rows, done, chunk + done / 4 * stride, stride);
        for (int64_t i = done / 4; w.format >= Format::e4m3 && i < done / 4 + kLane; ++i)
          store(to_chunk(i), finish_chunk(w.format, load(to_chunk(i))));
        continue;
      }
      I32 block[kLane];
      for (int64_t i = 0; i < kLane; ++i) block[i] = i < have ? load_row(rows[i] + done, bytes - done) : splat_i(0);
      transpose(block);
      for (int64_t i = 0; i < kLane; ++i) {
        if (w.format == Format::e4m3_2to4) {  // two bytes a chunk, not four
          if (done / 2 + 2 * i < chunks) store_words(to_chunk(done / 2 + 2 * i), block[i]);
          if (done / 2 + 2 * i + 1 < chunks) store_words(to_chunk(done / 2 + 2 * i + 1), shr<16>(block[i]));
        } else if (done / 4 + i < chunks) {
          store(to_chunk(done / 4 + i), finish_chunk(w.format, block[i]));
        }
      }
    }
    if (w.masks != nullptr)
      for (int64_t i = 0; i < chunks; ++i)
        pack_masks(w, row, have, from + 4 * i, chunk + i * stride + chunk_bytes(w.format) - kLane / 2);
  }
}

// n elements from k = begin of one vector, back into the rows of `to`.
static void unpack_segment(const Weights& w, int64_t vector, int64_t begin, int64_t n, const uint8_t* chunks,
                           int64_t stride, uint8_t* to, int64_t row_bytes) {
  const int64_t row = vector * kLane, have = min(kLane, w.n - row), bytes = bytes_of(w.format, n);
  uint8_t* const p = to + row * row_bytes + bytes_of(w.format, begin);
  const auto words = [&](int64_t chunk) {
    return 2 * chunk < bytes ? load_words(chunks + chunk * stride) : splat_i(0);
  };
  for (int64_t done = 0; done < bytes; done += 64) {
    I32 block[kLane];
    const int64_t left = min(64, bytes - done);
    for (int64_t i = 0; i < kLane; ++i) {
      if (w.format == Format::e4m3_2to4)
        block[i] = or_(words(done / 2 + 2 * i), shl<16>(words(done / 2 + 2 * i + 1)));
      else
        block[i] = 4 * i < left ? undo_chunk(w.format,
                                             load(reinterpret_cast<const int32_t*>(chunks + (done / 4 + i) * stride)))
                                : splat_i(0);
    }
    transpose(block);
    for (int64_t i = 0; i < have; ++i) {
      alignas(64) uint8_t line[64];
      store(reinterpret_cast<int32_t*>(line), block[i]);
      for (int64_t b = 0; b < left; ++b) p[i * row_bytes + done + b] = line[b];
    }
  }
}
// And its masks, k ascending.
static void unpack_masks(const Weights& w, int64_t vector, int64_t begin, int64_t n, const uint8_t* chunks,
                         int64_t stride, uint8_t* to) {
  const int64_t row = vector * kLane, have = min(kLane, w.n - row);
  for (int64_t k = begin; k < begin + n; k += 4, chunks += stride)
    for (int64_t i = 0; i < have; ++i) {
      const int mask = chunks[chunk_bytes(w.format) - kLane / 2 + i / 2] >> i % 2 * 4 & 15;
      uint8_t& both = to[(row + i) * w.mask_bytes() + k / 8];
      both = static_cast<uint8_t>(k % 8 == 0 ? mask : both | mask << 4);
    }
}

// 16 codes of e4m3 as floats, looked up; only the first n are read.
SK_INLINE F32 widen_e4m3(const uint8_t* p, int64_t n) {
  alignas(64) uint16_t words[kLane] = {};
  for (int64_t i = 0; i < min(n, kLane); ++i)
    words[i] = static_cast<uint16_t>(simd::kBf16OfE4m3[p[i] & 0x7f] | (p[i] & 0x80) << 8);
  return load(reinterpret_cast<const bf16*>(words));
}
