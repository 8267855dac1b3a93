// The rows of a table that ids name, divided by a power of two and rounded to 16 bits. The ids are read once, to mark
// their rows; marked rows are converted in the order of the table.
#pragma once
#include "memory.h"

// Must be laid out as `Arguments` in gr_compile/lowering/cpu/stored_rows.py. Strides are in elements.
struct StoredArgs {
  i64 threads, places, rows, features, table_row, scaled;  // scaled: 0 not, 1 by row, 2 all rows alike
  const TT* table;
  const IT* ids;
  ST* stored;    // [rows, features], zeros
  float* scale;  // [rows], all 1, or [1]
  i64 bad;       // the first id that is out of range, or the first value that does not fit: row * features + feature
};
constexpr i64 BAD_ID = 3, TOO_LARGE = 5;  // beside Status
constexpr i64 RUN = 64;                   // rows of a task
enum Scaled : i64 { PLAIN = 0, BY_ROW = 1, ALIKE = 2 };

static i64 mark(const StoredArgs& a, uint8_t* named) {
  i64 first = a.places;
#pragma omp parallel for num_threads(a.threads) reduction(min : first)
  for (i64 i = 0; i < a.places; i++) {
    uint64_t id = (uint64_t)(i64)a.ids[i];
    if (id < (uint64_t)a.rows) __atomic_store_n(named + id, 1, __ATOMIC_RELAXED);
    else if (i < first) first = i;
  }
  return first;
}

static inline float largest_of(const TT* row, i64 features) {
  vf most = vf{};
  i64 c = 0;
  for (; c + W <= features; c += W) {
    vf x = widened(row + c), y = x < 0 ? -x : x;
    most = (y > most) & (y <= __FLT_MAX__) ? y : most;
  }
  float found = 0, lane[W];
  store<vf>(lane, most);
  for (float x : lane) found = x > found ? x : found;
  for (; c < features; c++) {
    float x = __builtin_fabsf(element(row[c]));
    found = x > found && x <= __FLT_MAX__ ? x : found;
  }
  return found;
}

// The power of two that brings a magnitude to 2^14 .. 2^15; 1 for 0.
static inline float scale_of(float most) {
  if (!(most > 0)) return 1;
  int exponent;
  __builtin_frexpf(most, &exponent);
  exponent -= 15;
  return __builtin_ldexpf(1, exponent < -126 ? -126 : exponent);
}

static inline bool is_lost(float x, ST stored) {
  return __builtin_fabsf(x) <= __FLT_MAX__ && __builtin_fabsf(element(stored)) > __FLT_MAX__;
}

static void convert(const TT* row, i64 features, float factor, ST* out) {
  i64 c = 0;
  for (; c + W <= features; c += W) narrowed(out + c, widened(row + c) * factor);
  for (; c < features; c++) put(out + c, element(row[c]) * factor);
}

// The first finite value of a row that is stored as an infinity; `features` where there is none.
static i64 first_lost(const TT* row, i64 features, const ST* out) {
  bool fits = true;
  for (i64 c = 0; c < features; c++) fits &= !is_lost(element(row[c]), out[c]);
  i64 c = fits ? features : 0;
  while (c < features && !is_lost(element(row[c]), out[c])) c++;
  return c;
}

template <class Row> static void for_named(const StoredArgs& a, const uint8_t* named, Row row) {
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, RUN)
  for (i64 r = 0; r < a.rows; r++)
    if (named[r]) row(r, a.table + r * a.table_row);
}

static float largest_of_all(const StoredArgs& a, const uint8_t* named) {
  float most = 0;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, RUN) reduction(max : most)
  for (i64 r = 0; r < a.rows; r++)
    if (named[r]) {
      float found = largest_of(a.table + r * a.table_row, a.features);
      most = found > most ? found : most;
    }
  return most;
}

extern "C" i64 gr_stored_rows(StoredArgs* args) {
  StoredArgs& a = *args;
  Array<uint8_t> named;
  if (!named.zeros(a.rows)) return NO_MEMORY;
  if ((a.bad = mark(a, named.data)) < a.places) return BAD_ID;
  float all = a.scaled == ALIKE ? *a.scale = scale_of(largest_of_all(a, named.data)) : 1;
  i64 none = a.rows * a.features, lost = none;
  for_named(a, named.data, [&](i64 r, const TT* row) {
    float scale = a.scaled == BY_ROW ? a.scale[r] = scale_of(largest_of(row, a.features)) : all;
    ST* out = a.stored + r * a.features;
    convert(row, a.features, 1 / scale, out);
    if (a.scaled != PLAIN) return;  // what is scaled fits
    i64 c = first_lost(row, a.features, out);
    if (c == a.features) return;
#pragma omp critical
    lost = least(lost, r * a.features + c);
  });
  a.bad = lost;
  return lost < none ? TOO_LARGE : DONE;
}
