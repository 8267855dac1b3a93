// What forward and backward share: operands, the hulls of rows, blocks of rows, operands in scratch memory.
#pragma once
#include "memory.h"
#include "product.h"

// Must be laid out as `Arguments` in gr_compile/lowering/cpu/call.py. Strides are in elements.
struct Args {
  i64 threads, batch, heads, query_rows, key_rows, qk_width, v_width, seed;
  const i64 *query_offsets, *query_positions, *key_offsets, *key_positions;
  const void *q, *k, *v, *grad_out;
  i64 q_row, q_head, k_row, k_head, v_row, v_head, grad_row, grad_head, q_heads, k_heads, v_heads;
  const i64* sizes;
  const void* const* leaves;
  const i64* extents;  // of every leaf, one after another
  const i64* numels;
  void *out, *grad_q, *grad_k, *grad_v;
  float* const* grad_leaves;
};
inline i64 clamp(i64 x, i64 extent) { return x < 0 ? 0 : x >= extent ? extent - 1 : x; }
inline vi clamp(vi x, i64 extent) { return minimum_(maximum_(x, vi{}), as<vi>((int32_t)(extent - 1))); }
inline vl clamp(vl x, i64 extent) { return minimum_(maximum_(x, vl{}), as<vl>(extent - 1)); }

constexpr i64 BLOCK = 8 * MR;                 // rows of a block
constexpr i64 STRIP = W == 16 ? 192 : 96;    // keys of a strip of a pointwise program: whole registers, whole MR
constexpr i64 STRIP_FLOATS = BLOCK * 1024;    // of a softmax program, whose strip is the whole hull

// A row (of one head) against columns [c0, c1) of a strip that begins at packed key `key`; keys end at `limit`.
struct Row {
  i64 b, h, row, key, c0, c1, limit, at;  // at: where the row begins in the strip's buffers
  bool contiguous;                        // key positions follow one another
};
// The buffers of a strip: [BLOCK, width] each; `e` holds what the heads share, `g` gradients of shared loads.
struct Strip {
  i64 width = 0;
  Array<float> s, sm, p, dp;
  Array<double> e[SHARED + 1];
  Array<float> g[SHARED_GRADS + 1];
};
inline vi in_range(i64 c, i64 limit) { return iota() < (int32_t)(limit - c); }

// Add lanes to a table. With `copies` (its size) each lane has a table of its own: no lane waits for another.
template <class I> static inline void scatter_lanes(float* table, i64 copies, I at, vf g) {
  for (int l = 0; l < W; l++) table[l * copies + at[l]] += g[l];
}
// Places at, at + 1, ...: one addition where they lie inside.
template <class I> static inline void scatter_run(float* table, I at, i64 extent, bool contiguous, vf g) {
  i64 first = at[0];
  if (contiguous && first >= 0 && first + W <= extent) {
    store<vf>(table + first, load<vf>(table + first) + g);
    return;
  }
  for (int l = 0; l < W; l++) table[clamp((i64)at[l], extent)] += g[l];
}

// In place: scores of a row to its softmax over columns [c0, c1), of which those from `limit` on become 0.
static void softmax_row(float* x, i64 c0, i64 c1, i64 limit, bool zero_if_masked) {
  vf top = as<vf>(-INFINITY);
  for (i64 c = c0; c < c1; c += W) {
    vf y = load<vf>(x + c);
    if (c + W > limit) y = where(in_range(c, limit), y, as<vf>(-INFINITY)), store<vf>(x + c, y);
    top = maximum_(y, top);
  }
  float peak = -INFINITY;
  for (int l = 0; l < W; l++) peak = maximum_(peak, (float)top[l]);
  if (zero_if_masked && peak == -INFINITY) {
    memset((void*)(x + c0), 0, (c1 - c0) * sizeof(float));
    return;
  }
  vf total = vf{};
  for (i64 c = c0; c < c1; c += W) {
    vf y = exp_(load<vf>(x + c) - peak);
    if (c + W > limit) y = where(in_range(c, limit), y, vf{});
    store<vf>(x + c, y);
    total += y;
  }
  vf scale = as<vf>(1.0f / sum(total));
  for (i64 c = c0; c < c1; c += W) {
    vf y = load<vf>(x + c) * scale;
    store<vf>(x + c, c + W > limit ? where(in_range(c, limit), y, vf{}) : y);
  }
}
