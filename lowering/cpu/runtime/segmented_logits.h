// Entries of gr::segmented_logits: what sampled_logits.h and sampled_logits_backward.h do, with the lookups of one
// segment of the table at a time. A segment is in memory at an address of its own; `table` is where row 0 would be.
#pragma once
#include "sampled_logits_backward.h"
#include <new>

// One call: its operands, and its lookups by segment and by row.
struct Plan {
  SampledArgs a;
  i64 segment_rows = 0;
  Tasks tasks;
  Sorted sorted;        // by row; only for the table's gradient
  Array<Place> place;   // by segment, each segment's in order
  Array<i64> first;     // segment s: place[first[s]] ... place[first[s + 1] - 1]

  bool by_segment() {
    i64 n = a.groups * a.samples, segments = (a.rows + segment_rows - 1) / segment_rows;
    Array<i64> at;
    if (!place.allocate(n) || !first.zeros(segments + 1) || !at.allocate(segments)) return false;
    for (i64 i = 0; i < n; i++) first[a.ids[i] / segment_rows + 1]++;
    for (i64 s = 0; s < segments; s++) first[s + 1] += first[s], at[s] = first[s];
    for (i64 i = 0; i < n; i++) place[at[a.ids[i] / segment_rows]++] = (Place)i;
    return true;
  }
  // The first sorted lookup, from `from` on, of a row that is not before `id`.
  i64 first_sorted(i64 id, i64 from = 0) const {
    i64 to = sorted.count;
    while (from < to) {
      i64 middle = (from + to) / 2;
      if ((i64)a.ids[sorted.order[middle]] < id) from = middle + 1;
      else to = middle;
    }
    return from;
  }
  const Place* first_place(i64 segment, i64 least_place) const {
    const Place *from = &place[first[segment]], *to = &place[first[segment + 1]];
    while (from < to) {
      const Place* middle = from + (to - from) / 2;
      if ((i64)*middle < least_place) from = middle + 1;
      else to = middle;
    }
    return from;
  }
};

// Every task's tokens with every tile of rows that they look up in a segment, by tile(rows, tokens, count, columns, n);
// 0 where memory is short.
template <class Tile> static bool for_segment(const Plan& p, const SampledArgs& a, i64 segment, Tile tile) {
  bool ok = true;
  const Place* last = &p.place[p.first[segment + 1]];
#pragma omp parallel num_threads(a.threads)
  {
    Rows<float> rows;
    bool own = rows.allocate(a);
#pragma omp for schedule(dynamic, 16)
    for (i64 task = 0; task < p.tasks.count; task++) {
      if (!own) continue;
      i64 count, row, single;
      const i64* tokens = p.tasks.of(a, task, count, row, single);
      const Place* end = p.first_place(segment, (row + 1) * a.samples);
      for (const Place* at = p.first_place(segment, row * a.samples); at < end; at += TILE) {
        i64 n = least(TILE, (i64)(end - at)), columns[TILE] = {};
        IT ids[TILE] = {};
        for (i64 k = 0; k < n; k++) ids[k] = a.ids[at[k]], columns[k] = at[k] - row * a.samples;
        for (const Place* ahead = at + ROWS_AHEAD; ahead < at + ROWS_AHEAD + n && ahead < last; ahead++)
          fetch_row(a.table + (i64)a.ids[*ahead] * a.table_row, a.features);
        rows.read(a, ids, n);
        tile(rows, tokens, count, columns, n);
      }
    }
    if (!own) {
#pragma omp atomic write
      ok = false;
    }
  }
  return ok;
}

static void put_logits(const SampledArgs& a, const Rows<float>& rows, i64 token, const i64* columns, i64 n, const float* found) {
  float* out = a.logits + token * a.samples;
  for (i64 k = 0; k < n; k++) out[columns[k]] = found[k] * rows.weight[k];
}

static void segment_logits(
    const SampledArgs& a, const Rows<float>& rows, const i64* tokens, i64 count, const i64* columns, i64 n) {
  tile_products(a, rows, tokens, count, [&](i64 token, const float* found) {
    put_logits(a, rows, token, columns, n, found);
  });
}

static void segment_grad_query(
    const SampledArgs& a, const Rows<float>& rows, const i64* tokens, i64 count, const i64* columns, i64 n) {
  for (i64 p = 0; p < count; p++) {
    const float* grad = a.grad + tokens[p] * a.grad_row;
    float* out = a.grad_query + tokens[p] * a.width;
    vf w[TILE];
    for (i64 k = 0; k < TILE; k++) w[k] = as<vf>(k < n ? grad[columns[k]] * rows.weight[k] : 0);
    for (i64 c = 0; c < a.width; c += W) {
      vf s = load<vf>(out + c);
#pragma GCC unroll 4
      for (int k = 0; k < TILE; k++) s = fma(w[k], load<vf>(rows.at[k] + c), s);
      store<vf>(out + c, s);
    }
  }
}

// The gradients of rows [begin, end) into grad_table.
static bool segment_grad_table(const Plan& p, const SampledArgs& a, i64 begin, i64 end) {
  i64 first = p.first_sorted(begin);
  return table_gradient(a, p.tasks, p.sorted, first, p.first_sorted(end, first));
}

// Must be laid out as `_Rule` in gr_compile/lowering/cpu/segment_kernels.py.
struct Rule {
  double lr, eps;
  float* sums;  // of squares, by row; null: there are none
};

static void update_row(const Rule& rule, const float* grad, i64 features, i64 width, i64 id, TT* row) {
  double rate = rule.lr;
  if (rule.sums) {
    rule.sums[id] += product(grad, grad, width) / features;
    rate /= __builtin_sqrt((double)rule.sums[id]) + rule.eps;
  }
  float step = (float)rate;
  for (i64 c = 0; c < features; c++) put(row + c, element(row[c]) - step * grad[c]);
}

// Rows of some plans, a run of UPDATED at a time: the gradient of each row is summed over the plans, in their order.
constexpr i64 UPDATED = 64;
struct Updates {
  RowSum row;
  Array<float> total;
  Array<i64> at, end;

  bool allocate(const SampledArgs& a, i64 plans) {
    return row.allocate(a) && total.allocate(a.width) && at.allocate(plans) && end.allocate(plans);
  }
  static i64 id(const Plan& p, i64 i) { return p.a.ids[p.sorted.order[i]]; }
  // The gradient of row `next` by plan k into row.sum; false where it has none.
  bool sum(const Plan& p, const SampledArgs& a, i64 k, i64 next) {
    i64 to = at[k];
    while (to < end[k] && id(p, to) == next) to++;
    if (to == at[k]) return false;
    row.id = next;
    memset((void*)row.sum.data, 0, a.width * sizeof(float));
    add_lookups(a, p.tasks, p.sorted, at[k], to, row);
    if (a.normalized) row.before_normalizing(a);
    at[k] = to;
    return true;
  }
  const float* over_plans(Plan** plans, i64 count, TT* table, i64 next) {
    i64 width = plans[0]->a.width;
    if (count > 1) memset((void*)total.data, 0, width * sizeof(float));
    for (i64 k = 0; k < count; k++) {
      SampledArgs a = plans[k]->a;
      a.table = table;
      if (sum(*plans[k], a, k, next) && count > 1)
        for (i64 c = 0; c < width; c += W) store<vf>(&total[c], load<vf>(&total[c]) + load<vf>(&row.sum[c]));
    }
    return count > 1 ? total.data : row.sum.data;
  }
  void run(Plan** plans, i64 count, TT* table, i64 begin, i64 last, const Rule& rule) {
    for (i64 k = 0; k < count; k++) at[k] = plans[k]->first_sorted(begin), end[k] = plans[k]->first_sorted(last, at[k]);
    const SampledArgs& a = plans[0]->a;
    while (true) {
      i64 next = last;
      for (i64 k = 0; k < count; k++)
        if (at[k] < end[k]) next = least(next, id(*plans[k], at[k]));
      if (next == last) return;
      const float* grad = over_plans(plans, count, table, next);
      update_row(rule, grad, a.features, a.width, next, table + next * a.features);
    }
  }
};

// ------------------------------------------------------------------------------------------------------ entries
// The plan of a call into *made. pages: of `page` bytes; those with rows that are looked up are set to 1.
extern "C" i64 gr_segments_open(SampledArgs* args, i64 segment_rows, i64 sorts, i64 page, uint8_t* pages, Plan** made) {
  if (i64 status = check_places(*args)) return status;
  Plan* p = new (std::nothrow) Plan;
  if (!p) return NO_MEMORY;
  p->a = *args, p->segment_rows = segment_rows;
  if (!p->tasks.build(p->a) || !p->by_segment() || (sorts && !p->sorted.sort(p->a))) return delete p, NO_MEMORY;
  i64 bytes = p->a.features * sizeof(TT), n = p->a.groups * p->a.samples;
  for (i64 i = 0; pages && i < n; i++) {
    i64 id = p->a.ids[i];
    for (i64 k = id * bytes / page; k <= (id * bytes + bytes - 1) / page; k++) pages[k] = 1;
  }
  return *made = p, DONE;
}
extern "C" void gr_segments_close(Plan* p) { delete p; }

extern "C" i64 gr_segments_logits(Plan* p, TT* table, i64 segment) {
  SampledArgs a = p->a;
  a.table = table;
  bool done = for_segment(*p, a, segment, [&](const Rows<float>& rows, const i64* tokens, i64 count, const i64* columns, i64 n) {
    segment_logits(a, rows, tokens, count, columns, n);
  });
  return done ? DONE : NO_MEMORY;
}
extern "C" i64 gr_segments_grad_query(Plan* p, TT* table, i64 segment) {
  SampledArgs a = p->a;
  a.table = table;
  bool done = for_segment(*p, a, segment, [&](const Rows<float>& rows, const i64* tokens, i64 count, const i64* columns, i64 n) {
    segment_grad_query(a, rows, tokens, count, columns, n);
  });
  return done ? DONE : NO_MEMORY;
}
extern "C" i64 gr_segments_grad_table(Plan* p, TT* table, i64 begin, i64 end) {
  SampledArgs a = p->a;
  a.table = table;
  return segment_grad_table(*p, a, begin, end) ? DONE : NO_MEMORY;
}
// Nothing has changed where memory is short.
extern "C" i64 gr_segments_update(Plan** plans, i64 count, TT* table, i64 begin, i64 end, const Rule* rule) {
  bool ok = true;
#pragma omp parallel num_threads(plans[0]->a.threads)
  {
    Updates updates;
    if (!updates.allocate(plans[0]->a, count)) {
#pragma omp atomic write
      ok = false;
    }
#pragma omp barrier
#pragma omp for schedule(dynamic, 4)
    for (i64 first = begin; first < end; first += UPDATED)
      if (ok) updates.run(plans, count, table, first, least(first + UPDATED, end), *rule);
  }
  return ok ? DONE : NO_MEMORY;
}
