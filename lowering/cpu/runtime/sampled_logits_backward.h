// The entry of gr::sampled_logits_backward. The table's gradient: lookups sorted by row, each row summed in the order of
// its lookups by one thread; the normalisation of a row is differentiated once, from that sum. Rows that nobody looked
// up are not touched.
#pragma once
#include "sampled_logits.h"

typedef uint32_t Place;          // of the flattened ids, of which there are fewer than 2^32
constexpr i64 PLACES = 64;       // sorted lookups of a task
constexpr i64 PLACES_AHEAD = 8;  // lookups whose queries are fetched before they are added
constexpr int TOGETHER = 6;      // lookups of one group that are summed over its tokens side by side
constexpr int DIGIT = 11;

// The places of ids but `padding`, by id and then by place.
struct Sorted {
  Array<Place> order;
  i64 count = 0;

  bool sort(const SampledArgs& a) {
    i64 n = a.groups * a.samples;
    Array<Place> other;
    if (!order.allocate(n) || !other.allocate(n)) return false;
    for (i64 i = 0; i < n; i++)
      if (a.ids[i] != a.padding) order[count++] = (Place)i;
    for (int shift = 0; (a.rows - 1) >> shift; shift += DIGIT) {
      i64 at[(1 << DIGIT) + 1] = {};
      auto digit = [&](Place p) { return ((i64)a.ids[p] >> shift) & ((1 << DIGIT) - 1); };
      for (i64 i = 0; i < count; i++) at[digit(order[i]) + 1]++;
      for (i64 d = 0; d < 1 << DIGIT; d++) at[d + 1] += at[d];
      for (i64 i = 0; i < count; i++) other[at[digit(order[i])]++] = order[i];
      Place* read = order.data;
      order.data = other.data, other.data = read;
    }
    return true;
  }
};

// out[k] = the sum over tokens of grad[token, column[k]] * query[token], for N columns.
template <int N>
static void over_tokens(const SampledArgs& a, const i64* tokens, i64 count, const i64* column, float* out) {
  for (i64 c = 0; c < a.width; c += PANEL * W) {
    vf acc[N][PANEL] = {};
    i64 panels = least((i64)PANEL, (a.width - c) / W);
    for (i64 p = 0; p < count; p++) {
      const float *q = a.query + tokens[p] * a.query_row + c, *grad = a.grad + tokens[p] * a.grad_row;
      vf x[PANEL];
#pragma GCC unroll 4
      for (int m = 0; m < PANEL; m++) x[m] = m < panels ? load<vf>(q + m * W) : vf{};
#pragma GCC unroll 8
      for (int k = 0; k < N; k++) {
        vf y = as<vf>(grad[column[k]]);
#pragma GCC unroll 4
        for (int m = 0; m < PANEL; m++) acc[k][m] = fma(y, x[m], acc[k][m]);
      }
    }
    for (int k = 0; k < N; k++)
      for (i64 m = 0; m < panels; m++) store<vf>(out + k * a.width + c + m * W, acc[k][m]);
  }
}

template <class T> static void write_row(const float* sum, i64 features, bool adds, T* out) {
  i64 c = 0;
  if constexpr (std::is_same_v<T, float>)
    for (; c + W <= features; c += W) store<vf>(out + c, adds ? load<vf>(out + c) + load<vf>(sum + c) : load<vf>(sum + c));
  for (; c < features; c++) {
    T made;
    put(&made, sum[c]);
    put(out + c, adds ? element(out[c]) + element(made) : element(made));
  }
}

// One thread's gradient of the row that it is at.
struct RowSum {
  Rows<float> rows;
  Array<float> sum, parts;  // of the row; of up to TOGETHER of its lookups
  i64 id = -1;

  bool allocate(const SampledArgs& a) {
    return rows.allocate(a) && sum.allocate(a.width) && parts.allocate(TOGETHER * a.width);
  }
  void begin(const SampledArgs& a, i64 next) {
    if (next == id) return;
    end(a);
    id = next;
    memset((void*)sum.data, 0, a.width * sizeof(float));
  }
  void add(const SampledArgs& a, float weight, const float* values) {
    vf w = as<vf>(weight);
    for (i64 c = 0; c < a.width; c += W) store<vf>(&sum[c], fma(w, load<vf>(values + c), load<vf>(&sum[c])));
  }
  void end(const SampledArgs& a) {
    if (id < 0) return;
    if (a.normalized) before_normalizing(a);
    write_row(sum.data, a.features, a.adds, a.grad_table + id * a.features);
  }
  // From the gradient of row / max(norm, eps); nothing flows through a norm below eps, or of 0.
  void before_normalizing(const SampledArgs& a) {
    const float* row = rows.row(a, id, 0);
    float norm = rows.norm(a, id, row), scale = rows.most_norm(a, id, row), factor = rows.factor(a, id);
    if (norm >= (float)a.eps && norm > 0) {
      float along = product(row, sum.data, a.width) * factor / scale;
      for (i64 c = 0; c < a.width; c += W)
        store<vf>(&sum[c], load<vf>(&sum[c]) - load<vf>(row + c) * factor / scale * along);
    }
    for (i64 c = 0; c < a.width; c += W) store<vf>(&sum[c], load<vf>(&sum[c]) / scale);
  }
};

// Sorted lookups [from, to) of whole rows, each of one token.
static void add_tokens(const SampledArgs& a, const Sorted& sorted, i64 from, i64 to, RowSum& row) {
  for (i64 i = from; i < to; i++) {
    Place place = sorted.order[i];
    Place ahead = sorted.order[least(i + PLACES_AHEAD, sorted.count - 1)];
    const float* query = a.query + ahead / (Place)a.samples * a.query_row;
    for (i64 c = 0; c < a.width; c += 16) __builtin_prefetch(query + c);
    if (a.adds || a.normalized) {
      i64 id = a.ids[ahead];
      if (a.adds) fetch_row(a.grad_table + id * a.features, a.features);
      if (a.normalized) fetch_row(a.table + id * a.table_row, a.features);
    }
    i64 token = place / (Place)a.samples, r = place % (Place)a.samples;
    row.begin(a, a.ids[place]);
    row.add(a, a.grad[token * a.grad_row + r], a.query + token * a.query_row);
  }
}

// The same where tokens share ids: a lookup is summed over the tokens of its group, several of one group at once.
static void add_groups(const SampledArgs& a, const Tasks& tasks, const Sorted& sorted, i64 from, i64 to, RowSum& row) {
  for (i64 i = from; i < to;) {
    i64 group = sorted.order[i] / (Place)a.samples, column[TOGETHER];
    int n = 0;
    for (; n < TOGETHER && i + n < to && sorted.order[i + n] / (Place)a.samples == group; n++)
      column[n] = sorted.order[i + n] % (Place)a.samples;
    i64 first = tasks.begin[group], count = tasks.end[group] - first;
    const i64* tokens = &tasks.token[first];
    if (n == TOGETHER) over_tokens<TOGETHER>(a, tokens, count, column, row.parts.data);
    else
      for (int k = 0; k < n; k++) over_tokens<1>(a, tokens, count, column + k, &row.parts[k * a.width]);
    for (int k = 0; k < n; k++) {
      row.begin(a, a.ids[sorted.order[i + k]]);
      row.add(a, 1, &row.parts[k * a.width]);
    }
    i += n;
  }
}

static void add_lookups(const SampledArgs& a, const Tasks& tasks, const Sorted& sorted, i64 from, i64 to, RowSum& row) {
  if (a.group) add_groups(a, tasks, sorted, from, to, row);
  else add_tokens(a, sorted, from, to, row);
}

// The gradients of the rows of sorted lookups [first, last), which are all of these rows'.
static bool table_gradient(const SampledArgs& a, const Tasks& tasks, const Sorted& sorted, i64 first, i64 last) {
  bool ok = true;
  auto id = [&](i64 i) { return (i64)a.ids[sorted.order[i]]; };
  auto next_row = [&](i64 i) {  // the first lookup from i on that begins a row
    while (i > first && i < last && id(i) == id(i - 1)) i++;
    return least(i, last);
  };
#pragma omp parallel num_threads(a.threads)
  {
    RowSum row;
    bool own = row.allocate(a);
    // Nothing is written unless every thread has its memory.
    if (!own) {
#pragma omp atomic write
      ok = false;
    }
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (i64 start = first; start < last; start += PLACES) {
      if (!ok) continue;
      add_lookups(a, tasks, sorted, next_row(start), next_row(start + PLACES), row);
      row.end(a);
      row.id = -1;
    }
  }
  return ok;
}

extern "C" i64 gr_sampled_logits_backward(SampledArgs* args) {
  SampledArgs& a = *args;
  if (i64 status = check_places(a)) return status;
  Tasks tasks;
  Sorted sorted;
  if (!tasks.build(a) || (a.grad_table && !sorted.sort(a))) return NO_MEMORY;
  if (a.grad_query) {
    memset((void*)a.grad_query, 0, a.tokens * a.width * sizeof(float));
    bool done = for_tiles(a, tasks, [&](const auto& rows, const i64* tokens, i64 count, i64 r, i64 n) {
      tile_grad_query(a, rows, tokens, count, r, n);
    });
    if (!done) return NO_MEMORY;
  }
  return !a.grad_table || table_gradient(a, tasks, sorted, 0, sorted.count) ? DONE : NO_MEMORY;
}
