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
  i64 scale_step;                 // 1: a factor for each row; 0: one for all
  double eps;
  const float *query, *grad;
  const TT* table;      // the rows that are read: the table itself, or a copy
  const float* scale;   // what they are multiplied by, or null
  const IT* ids;     // [groups, samples]
  const i64* group;  // [tokens], or null: token t has the ids t
  float *logits, *grad_query;
  GT* grad_table;
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

template <class T> static inline void fetch_row(const T* row, i64 features) {
  for (i64 c = 0; c < features; c += 64 / (i64)sizeof(T)) __builtin_prefetch(row + c);
}

static inline float folded(vf x) {
  float y[W];
  store<vf>(y, x);
  for (int h = W / 2; h; h /= 2)
    for (int l = 0; l < h; l++) y[l] += y[l + h];
  return y[0];
}
template <class E> static inline float product(const E* x, const float* y, i64 width) {
  vf s = vf{};
  for (i64 c = 0; c < width; c += W) s = fma(widened(x + c), load<vf>(y + c), s);
  return folded(s);
}
template <class E> static inline float square(const E* x, i64 width) {
  vf s = vf{};
  for (i64 c = 0; c < width; c += W) s = fma(widened(x + c), widened(x + c), s);
  return folded(s);
}

// A tile of rows in whole vectors of E: the table's own memory where it is that, copies as floats where not.
template <class E> struct Rows {
  Array<float> copies;
  Array<E> nothing;
  const E* at[TILE];
  float weight[TILE];  // what products with a row are multiplied by

  bool allocate(const SampledArgs& a) { return copies.zeros(TILE * a.width) && nothing.zeros(a.width); }
  const E* row(const SampledArgs& a, i64 id, i64 k) {
    const TT* found = a.table + id * a.table_row;
    if constexpr (std::is_same_v<E, TT>)
      if (a.features == a.width) return found;
    if constexpr (std::is_same_v<E, float>) {
      for (i64 c = 0; c < a.features; c++) copies[k * a.width + c] = element(found[c]);
      return &copies[k * a.width];
    }
    __builtin_unreachable();
  }
  void read(const SampledArgs& a, const IT* ids, i64 n) {
    for (i64 k = 0; k < TILE; k++) {
      at[k] = k < n ? row(a, ids[k], k) : nothing.data;
      weight[k] = k < n ? weight_of(a, ids[k], at[k]) : 0;
    }
  }
  static float factor(const SampledArgs& a, i64 id) { return a.scale ? a.scale[id * a.scale_step] : 1; }
  static float norm(const SampledArgs& a, i64 id, const E* row) {
    return __builtin_sqrtf(square(row, a.width)) * factor(a, id);
  }
  static float most_norm(const SampledArgs& a, i64 id, const E* row) {
    float found = norm(a, id, row), eps = (float)a.eps;
    return found < eps ? eps : found;  // NaN stays
  }
  static float weight_of(const SampledArgs& a, i64 id, const E* row) {
    return a.normalized ? factor(a, id) / most_norm(a, id, row) : factor(a, id);
  }
};

// Products of N tokens with a tile of rows.
template <int N, class E>
static inline void products(const float* const* q, const Rows<E>& rows, i64 width, float (*out)[TILE]) {
  vf acc[N][TILE] = {};
  for (i64 c = 0; c < width; c += W) {
    vf x[TILE];
#pragma GCC unroll 4
    for (int k = 0; k < TILE; k++) x[k] = widened(rows.at[k] + c);
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

template <class E>
static inline void write_logits(const SampledArgs& a, const Rows<E>& rows, i64 token, i64 r, i64 n, const float* found) {
  float* out = a.logits + token * a.samples + r;
  for (i64 k = 0; k < n; k++) out[k] = found[k] * rows.weight[k];
}

// The products of some tokens with a tile of rows, by write(token, products).
template <class E, class Write>
static void tile_products(const SampledArgs& a, const Rows<E>& rows, const i64* tokens, i64 count, Write write) {
  float found[TILE][TILE];
  const float* q[TILE];
  i64 p = 0;
  for (; p + TILE <= count; p += TILE) {
    for (i64 i = 0; i < TILE; i++) q[i] = a.query + tokens[p + i] * a.query_row;
    products<TILE>(q, rows, a.width, found);
    for (i64 i = 0; i < TILE; i++) write(tokens[p + i], found[i]);
  }
  for (; p < count; p++) {
    q[0] = a.query + tokens[p] * a.query_row;
    products<1>(q, rows, a.width, found);
    write(tokens[p], found[0]);
  }
}

// The logits of some tokens with a tile of rows.
template <class E>
static void tile_logits(const SampledArgs& a, const Rows<E>& rows, const i64* tokens, i64 count, i64 r, i64 n) {
  tile_products(a, rows, tokens, count, [&](i64 token, const float* found) { write_logits(a, rows, token, r, n, found); });
}

// Add to the gradients of some tokens what a tile of rows gives them.
template <class E>
static void tile_grad_query(const SampledArgs& a, const Rows<E>& rows, const i64* tokens, i64 count, i64 r, i64 n) {
  for (i64 p = 0; p < count; p++) {
    const float* grad = a.grad + tokens[p] * a.grad_row + r;
    float* out = a.grad_query + tokens[p] * a.width;
    vf w[TILE];
    for (i64 k = 0; k < TILE; k++) w[k] = as<vf>(k < n ? grad[k] * rows.weight[k] : 0);
    for (i64 c = 0; c < a.width; c += W) {
      vf s = load<vf>(out + c);
#pragma GCC unroll 4
      for (int k = 0; k < TILE; k++) s = fma(w[k], widened(rows.at[k] + c), s);
      store<vf>(out + c, s);
    }
  }
}

// Every task's tokens with every tile of its rows, by `tile`; 0 where memory is short.
template <class E, class Tile> static bool for_tiles_of(const SampledArgs& a, const Tasks& tasks, Tile tile) {
  bool ok = true;
  i64 last = a.groups * a.samples;
#pragma omp parallel num_threads(a.threads)
  {
    Rows<E> rows;
    bool own = rows.allocate(a);
#pragma omp for schedule(dynamic, 4)
    for (i64 task = 0; task < tasks.count; task++) {
      if (!own) continue;
      i64 count, row, single;
      const i64* tokens = tasks.of(a, task, count, row, single);
      for (i64 r = 0; r < a.samples; r += TILE) {
        i64 place = row * a.samples + r, n = least(TILE, a.samples - r);
        for (i64 k = place + ROWS_AHEAD; k < least(place + ROWS_AHEAD + n, last); k++) {
          fetch_row(a.table + (i64)a.ids[k] * a.table_row, a.features);
          if (a.scale_step) __builtin_prefetch(a.scale + a.ids[k]);
        }
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
template <class Tile> static bool for_tiles(const SampledArgs& a, const Tasks& tasks, Tile tile) {
  return a.features == a.width ? for_tiles_of<TT>(a, tasks, tile) : for_tiles_of<float>(a, tasks, tile);
}
