// Rows in blocks, hulls of groups of MR rows, operands in scratch memory. `Program` is printed.
#pragma once

struct Rows { i64 b, r0, r1; double cost; };

// The packed keys [low, high) that each query row may read, from the program's hull in padded coordinates.
struct Hulls {
  Array<i64> low, high;
  Array<char> contiguous;  // by sequence
  bool allocate(const Args& a) { return contiguous.allocate(a.batch) && low.allocate(a.query_rows) && high.allocate(a.query_rows); }
  void sequence(const Program& p, const Args& a, i64 b) {
    i64 k0 = a.key_offsets[b], k1 = a.key_offsets[b + 1];
    const i64* at = a.key_positions;
    bool run = contiguous[b] = k1 > k0 && at[k1 - 1] - at[k0] == k1 - k0 - 1;
    auto place = [&](i64 bound) {
      if (run) return k0 + least(most(bound - at[k0], (i64)0), k1 - k0);
      i64 low = k0, high = k1;
      while (low < high) {
        i64 middle = (low + high) / 2;
        if (at[middle] < bound) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    for (i64 r = a.query_offsets[b]; r < a.query_offsets[b + 1]; r++) {
      i64 i = a.query_positions[r];
      low[r] = Program::HAS_LOW ? place(p.key_low(b, i)) : k0;
      high[r] = most(low[r], Program::HAS_HIGH ? place(p.key_high(b, i)) : k1);
    }
  }
};

// Everything about a call that is computed once: columns, hulls.
struct Call {
  const Args& a;
  Program p;
  Hulls hulls;
  explicit Call(const Args& args) : a(args), p(args) {}
  Status prepare() {
    if (!p.allocate() || !hulls.allocate(a)) return NO_MEMORY;
    int status = DONE;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1) if (a.query_rows + a.key_rows > 2048)
    for (i64 b = 0; b < a.batch; b++) {
      bool fits = true;
      for (i64 r = a.query_offsets[b]; r < a.query_offsets[b + 1]; r++) fits &= p.query_columns(b, a.query_positions[r], r);
      for (i64 r = a.key_offsets[b]; r < a.key_offsets[b + 1]; r++) fits &= p.key_columns(b, a.key_positions[r], r);
      if (!fits) {
#pragma omp atomic write
        status = TOO_WIDE;
      }
      hulls.sequence(p, a, b);
    }
    return (Status)status;
  }
  double cost(i64 b, i64 r0, i64 r1) const {
    double work = 4.0 * (r1 - r0);
    for (i64 r = r0; r < r1; r++) work += hulls.high[r] - hulls.low[r];
    return work;
  }
  // Rows of a block: of a softmax program as many as let the strip of a whole hull stay in the cache.
  i64 rows_of_block(i64 keys) const {
    if (!Program::SOFTMAX) return BLOCK;
    return least(BLOCK, most((i64)MR, STRIP_FLOATS / most(keys, (i64)1) / MR * MR));
  }
  i64 strip_width(i64 keys) const { return Program::SOFTMAX ? round_up(keys + NR, MR * NR) : STRIP; }
};

template <class T> static void copy_rows(const T* src, i64 row, i64 n, i64 width, float* dst, i64 ld) {
  for (i64 r = 0; r < n; r++) {
    i64 c = 0;
    if constexpr (std::is_same_v<T, float>) {
      for (; c + W <= width; c += W) store<vf>(dst + r * ld + c, load<vf>(src + r * row + c));
    }
    for (; c < width; c++) dst[r * ld + c] = element(src[r * row + c]);
    for (; c < ld; c++) dst[r * ld + c] = 0;
  }
}
// The transpose of n rows in panels of NR: [row / NR][width][NR], zeros behind the last row.
template <class T> static void transpose_rows(const T* src, i64 row, i64 n, i64 width, float* dst) {
  for (i64 r = 0; r < n; r += W) {
    float* panel = dst + r / NR * NR * width + r % NR;
    if (r + W <= n) {
      for (i64 c = 0; c < width; c++) {
        vf x;
#pragma GCC unroll 16
        for (int l = 0; l < W; l++) x[l] = element(src[(r + l) * row + c]);
        store<vf>(panel + c * NR, x);
      }
    } else {
      for (i64 c = 0; c < width; c++)
        for (i64 x = 0; x < W; x++) panel[c * NR + x] = r + x < n ? element(src[(r + x) * row + c]) : 0.0f;
    }
  }
}

// Can a product read rows of an operand where they are? Rows far apart would meet in the same few sets of the cache.
template <class T> static bool in_place(i64 width, i64 ld) { return std::is_same_v<T, float> && width % W == 0 && ld == width; }

// The groups of MR rows of a block and the columns of the current strip that each of them needs.
struct Groups {
  i64 low[BLOCK / MR], high[BLOCK / MR], c0[BLOCK / MR], c1[BLOCK / MR];
  i64 count, first, last;  // first, last: the block's hull
  Groups(const Hulls& hulls, i64 r0, i64 r1) : count((r1 - r0 + MR - 1) / MR), first(INT64_MAX), last(0) {
    for (i64 g = 0; g < count; g++) {
      low[g] = INT64_MAX, high[g] = 0;
      for (i64 r = r0 + g * MR; r < least(r1, r0 + (g + 1) * MR); r++) {
        if (hulls.low[r] < hulls.high[r]) {
          low[g] = least(low[g], hulls.low[r]);
          high[g] = most(high[g], hulls.high[r]);
        }
      }
      first = least(first, low[g]);
      last = most(last, high[g]);
    }
  }
  void strip(i64 key, i64 n) {
    for (i64 g = 0; g < count; g++) {
      c0[g] = least(most(low[g] - key, (i64)0), n) / W * W;
      c1[g] = round_up(most(least(high[g] - key, n), c0[g]), W);
    }
  }
};
