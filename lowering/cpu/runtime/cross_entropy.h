// Rows of logits to the losses of their targets and, in place, to slopes that lack one factor a row.
#pragma once
#include "numeric.h"

// Must be laid out as `Arguments` in gr_compile/lowering/cpu/linear_cross_entropy.py.
struct EntropyArgs {
  i64 threads, rows, items, slopes;
  float* logits;      // [rows, items]; with `slopes` it becomes exp(logit - peak), less their sum at the target
  const float* bias;  // [items] or null
  const i64* target;  // [rows], each in [0, items)
  float *loss, *sum;  // [rows]: the loss, and the sum of the exponentials
};
constexpr i64 RUN = 64 * W;  // elements whose sum is kept in lanes, before it goes to a double

inline vf load_some(const float* p, i64 n, float rest) {
  if (n >= W) return load<vf>(p);
  vf x = as<vf>(rest);
  for (i64 l = 0; l < n; l++) x[l] = p[l];
  return x;
}
inline void store_some(float* p, i64 n, vf x) {
  if (n >= W) return store<vf>(p, x);
  for (i64 l = 0; l < n; l++) p[l] = x[l];
}

// The largest logit; adds the bias. A NaN is passed by: it comes out in the sum.
static float peak_of(float* x, const float* bias, i64 items) {
  vf top = as<vf>(-INFINITY);
  for (i64 v = 0; v < items; v += W) {
    vf y = load_some(x + v, items - v, -INFINITY);
    if (bias) store_some(x + v, items - v, y += load_some(bias + v, items - v, 0.0f));
    top = where(y > top, y, top);
  }
  float peak = -INFINITY;
  for (int l = 0; l < W; l++) peak = most((float)top[l], peak);
  return peak;
}
static double exponentials(float* x, i64 items, float peak, bool keep) {
  double total = 0;
  for (i64 begin = 0; begin < items; begin += RUN) {
    i64 end = least(begin + RUN, items);
    vf lanes = vf{};
    for (i64 v = begin; v < end; v += W) {
      vf y = exp_(load_some(x + v, end - v, -INFINITY) - peak);
      if (keep) store_some(x + v, end - v, y);
      lanes += y;
    }
    total += sum(lanes);
  }
  return total;
}

extern "C" i64 gr_cross_entropy(const EntropyArgs* args) {
  const EntropyArgs& a = *args;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
  for (i64 r = 0; r < a.rows; r++) {
    float* x = a.logits + r * a.items;
    float peak = peak_of(x, a.bias, a.items), own = x[a.target[r]] - peak;
    double total = exponentials(x, a.items, peak, a.slopes);
    a.sum[r] = total;
    a.loss[r] = libm::log(total) - own;
    if (a.slopes) x[a.target[r]] -= a.sum[r];
  }
  return 0;
}
