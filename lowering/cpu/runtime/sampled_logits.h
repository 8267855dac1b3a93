// Logits of sampled rows of a table, and the gradient of their query: rows are read where they lie, TILE at a time,
// and dot products of a tile are summed side by side. A task is one token, or some that share their ids.
#pragma once
#include "memory.h"

// Must be laid out as `Arguments` in gr_compile/lowering/cpu/sampled_logits.py. Strides are in elements. query, grad
// and what is made of them are float; rows of query and of its gradient are `width`, whole vectors, those of the
// table `features`, of which width - features are missing.
struct SampledArgs {
  i64 threads, tokens, groups, samples, rows, features, width, query_row, table_row, grad_row;
  i64 padding, normalized, adds;  // adds: to what grad_table holds
  double eps;
  const float *query, *grad;
  const TT* table;
  const IT* ids;     // [groups, samples]
  const i64* group;  // [tokens], or null: token t has the ids t
  float *logits, *grad_query;
  TT* grad_table;
  i64 bad;  // where the first id or group lies that is out of range
};
constexpr i64 BAD_ID = 3, BAD_GROUP = 4;  // beside Status
constexpr i64 TILE = 4;       // rows whose products with a token are summed side by side, and tokens of a tile
constexpr i64 BLOCK = 32;     // tokens of a task
constexpr i64 ROWS_AHEAD = 8;  // rows that are fetched before they are read

// The place of the first of n integers that is not in 0..limit-1; n where there is none.
template <class T> static i64 first_outside(const T* x, i64 n, i64 limit, i64 threads) {
  i64 first = n;
#pragma omp parallel for num_threads(threads) reduction(min : first)
  for (i64 i = 0; i < n; i++)
    if ((uint64_t)(i64)x[i] >= (uint64_t)limit && i < first) first = i;
  return first;
}

static i64 check_places(SampledArgs& a) {
  a.bad = first_outside(a.ids, a.groups * a.samples, a.rows, a.threads);
  if (a.bad < a.groups * a.samples) return BAD_ID;
  if (!a.group) return DONE;
  a.bad = first_outside(a.group, a.tokens, a.groups, a.threads);
  return a.bad < a.tokens ? BAD_GROUP : (i64)DONE;
}

// The tokens by group, each group's in order, and the tasks: runs of them.
struct Tasks {
  Array<i64> token, begin, end, start;  // group g: token[begin[g]] ... token[end[g] - 1]; task k: from start[k]
  i64 count = 0;

  bool build(const SampledArgs& a) {
    if (!a.group) return count = a.tokens, true;
    if (!begin.zeros(a.groups + 1) || !end.allocate(a.groups) || !token.allocate(a.tokens)) return false;
    for (i64 t = 0; t < a.tokens; t++) begin[a.group[t] + 1]++;
    for (i64 g = 0; g < a.groups; g++) begin[g + 1] += begin[g], end[g] = begin[g];
    for (i64 t = 0; t < a.tokens; t++) token[end[a.group[t]]++] = t;
    if (!start.allocate(a.tokens / BLOCK + least(a.groups, a.tokens) + 1)) return false;
    for (i64 g = 0; g < a.groups; g++)
      for (i64 p = begin[g]; p < end[g]; p += BLOCK) start[count++] = p;
    start[count] = a.tokens;
    return true;
  }
  // The tokens of task k and its row of ids. Of a task without a group the token is `single`.
  const i64* of(const SampledArgs& a, i64 k, i64& n, i64& row, i64& single) const {
    if (!a.group) return n = 1, row = single = k, &single;
    n = start[k + 1] - start[k];
    row = a.group[token[start[k]]];
    return &token[start[k]];
  }
};

static inline void fetch_row(const TT* row, i64 features) {
  for (i64 c = 0; c < features; c += 64 / (i64)sizeof(TT)) __builtin_prefetch(row + c);
}

inline const float* in_place(const float* row) { return row; }
template <class T> static const float* in_place(const T*) { return nullptr; }

static inline float folded(vf x) {
  float y[W];
  store<vf>(y, x);
  for (int h = W / 2; h; h /= 2)
    for (int l = 0; l < h; l++) y[l] += y[l + h];
  return y[0];
}
static inline float product(const float* x, const float* y, i64 width) {
  vf s = vf{};
  for (i64 c = 0; c < width; c += W) s = fma(load<vf>(x + c), load<vf>(y + c), s);
  return folded(s);
}

// A tile of rows as floats in whole vectors: the table's own memory where it is that, copies where not.
struct Rows {
  Array<float> copies, nothing;
  const float* at[TILE];
  float scale[TILE];  // what a row is divided by

  bool allocate(const SampledArgs& a) { return copies.zeros(TILE * a.width) && nothing.zeros(a.width); }
  const float* row(const SampledArgs& a, i64 id, i64 k) {
    const TT* found = a.table + id * a.table_row;
    if (a.features == a.width && in_place(found)) return in_place(found);
    for (i64 c = 0; c < a.features; c++) copies[k * a.width + c] = element(found[c]);
    return &copies[k * a.width];
  }
  void read(const SampledArgs& a, const IT* ids, i64 n) {
    for (i64 k = 0; k < TILE; k++) {
      at[k] = k < n ? row(a, ids[k], k) : nothing.data;
      scale[k] = k < n && a.normalized ? most_norm(a, at[k]) : 1;
    }
  }
  static float norm(const SampledArgs& a, const float* row) { return __builtin_sqrtf(product(row, row, a.width)); }
  static float most_norm(const SampledArgs& a, const float* row) {
    float found = norm(a, row), eps = (float)a.eps;
    return found < eps ? eps : found;  // NaN stays
  }
};

// Products of N tokens with a tile of rows.
template <int N> static inline void products(const float* const* q, const Rows& rows, i64 width, float (*out)[TILE]) {
  vf acc[N][TILE] = {};
  for (i64 c = 0; c < width; c += W) {
    vf x[TILE];
#pragma GCC unroll 4
    for (int k = 0; k < TILE; k++) x[k] = load<vf>(rows.at[k] + c);
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      vf y = load<vf>(q[n] + c);
#pragma GCC unroll 4
      for (int k = 0; k < TILE; k++) acc[n][k] = fma(y, x[k], acc[n][k]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int k = 0; k < TILE; k++) out[n][k] = folded(acc[n][k]);
}

static inline void write_logits(const SampledArgs& a, const Rows& rows, i64 token, i64 r, i64 n, const float* found) {
  float* out = a.logits + token * a.samples + r;
  for (i64 k = 0; k < n; k++) out[k] = a.normalized ? found[k] / rows.scale[k] : found[k];
}

// The logits of some tokens with a tile of rows.
static void tile_logits(const SampledArgs& a, const Rows& rows, const i64* tokens, i64 count, i64 r, i64 n) {
  float found[TILE][TILE];
  const float* q[TILE];
  i64 p = 0;
  for (; p + TILE <= count; p += TILE) {
    for (i64 i = 0; i < TILE; i++) q[i] = a.query + tokens[p + i] * a.query_row;
    products<TILE>(q, rows, a.width, found);
    for (i64 i = 0; i < TILE; i++) write_logits(a, rows, tokens[p + i], r, n, found[i]);
  }
  for (; p < count; p++) {
    q[0] = a.query + tokens[p] * a.query_row;
    products<1>(q, rows, a.width, found);
    write_logits(a, rows, tokens[p], r, n, found[0]);
  }
}

// Add to the gradients of some tokens what a tile of rows gives them.
static void tile_grad_query(const SampledArgs& a, const Rows& rows, const i64* tokens, i64 count, i64 r, i64 n) {
  for (i64 p = 0; p < count; p++) {
    const float* grad = a.grad + tokens[p] * a.grad_row + r;
    float* out = a.grad_query + tokens[p] * a.width;
    vf w[TILE];
    for (i64 k = 0; k < TILE; k++) w[k] = as<vf>(k >= n ? 0 : a.normalized ? grad[k] / rows.scale[k] : grad[k]);
    for (i64 c = 0; c < a.width; c += W) {
      vf s = load<vf>(out + c);
#pragma GCC unroll 4
      for (int k = 0; k < TILE; k++) s = fma(w[k], load<vf>(rows.at[k] + c), s);
      store<vf>(out + c, s);
    }
  }
}

// Every task's tokens with every tile of its rows, by `tile`; 0 where memory is short.
template <class Tile> static bool for_tiles(const SampledArgs& a, const Tasks& tasks, Tile tile) {
  bool ok = true;
  i64 last = a.groups * a.samples;
#pragma omp parallel num_threads(a.threads)
  {
    Rows rows;
    bool own = rows.allocate(a);
#pragma omp for schedule(dynamic, 4)
    for (i64 task = 0; task < tasks.count; task++) {
      if (!own) continue;
      i64 count, row, single;
      const i64* tokens = tasks.of(a, task, count, row, single);
      for (i64 r = 0; r < a.samples; r += TILE) {
        i64 place = row * a.samples + r, n = least(TILE, a.samples - r);
        for (i64 k = place + ROWS_AHEAD; k < least(place + ROWS_AHEAD + n, last); k++)
          fetch_row(a.table + (i64)a.ids[k] * a.table_row, a.features);
        rows.read(a, a.ids + place, n);
        tile(rows, tokens, count, r, n);
      }
    }
    if (!own) {
#pragma omp atomic write
      ok = false;
    }
  }
  return ok;
}
