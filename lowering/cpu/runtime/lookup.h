// The gradient of a table: the sum over each row's lookups, in the order of the lookups, whatever the threads.
#pragma once
#include "memory.h"

// Must be laid out as `Arguments` in gr_compile/lowering/cpu/lookup.py. Strides are in elements.
struct LookupArgs {
  i64 threads, tokens, rows, width, grad_row, padding;
  const GT* grad;
  const i64* ids;
  GT* out;
};
constexpr i64 TABLE_ROWS = 64;  // of one task
constexpr i64 AHEAD = 3;        // lookups whose rows are fetched before they are added

template <class T> static void add_row(const T* grad, i64 width, float* sum) {
  i64 c = 0;
  if constexpr (std::is_same_v<T, float>)
    for (; c + W <= width; c += W) store<vf>(sum + c, load<vf>(sum + c) + load<vf>(grad + c));
  for (; c < width; c++) sum[c] += element(grad[c]);
}

inline float* in_place(float* out) { return out; }
template <class T> static float* in_place(T*) { return nullptr; }

extern "C" i64 gr_lookup_gradient(const LookupArgs* args) {
  const LookupArgs& a = *args;
  Array<i64> end, order;  // the lookups of row r: order[end[r - 1]] ... order[end[r] - 1]
  if (!end.zeros(a.rows + 1) || !order.allocate(a.tokens)) return NO_MEMORY;
  auto counts = [&](i64 id) { return id >= 0 && id < a.rows && id != a.padding; };
  for (i64 t = 0; t < a.tokens; t++)
    if (counts(a.ids[t])) end[a.ids[t] + 1]++;
  for (i64 r = 0; r < a.rows; r++) end[r + 1] += end[r];
  for (i64 t = 0; t < a.tokens; t++)
    if (counts(a.ids[t])) order[end[a.ids[t]]++] = t;
  i64 last = end[a.rows] - 1;
  int status = DONE;
#pragma omp parallel num_threads(a.threads)
  {
    Array<float> sum;
    bool ok = sum.allocate(a.width);
#pragma omp for schedule(dynamic, TABLE_ROWS)
    for (i64 r = 0; r < a.rows; r++) {
      if (!ok) continue;
      GT* out = a.out + r * a.width;
      float* total = in_place(out) ? in_place(out) : sum.data;
      memset((void*)total, 0, a.width * sizeof(float));
      for (i64 n = r ? end[r - 1] : 0; n < end[r]; n++) {
        const GT* ahead = a.grad + order[least(n + AHEAD, last)] * a.grad_row;
        for (i64 c = 0; c < a.width; c += 64 / (i64)sizeof(GT)) __builtin_prefetch(ahead + c);
        add_row(a.grad + order[n] * a.grad_row, a.width, total);
      }
      if (total == sum.data)
        for (i64 c = 0; c < a.width; c++) put(out + c, sum[c]);
    }
    if (!ok) {
#pragma omp atomic write
      status = NO_MEMORY;
    }
  }
  return status;
}
