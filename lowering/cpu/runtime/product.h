// Products of blocks in scratch memory: C [m, n] (+)= A B, 6 rows by PANEL registers at a time.
#pragma once
#include "vector.h"

constexpr int MR = 6;

// A is [m, kc] with rows `lda` apart, or its transpose [kc, m] (T). n is a multiple of W. Never inlined: inside a large
// function the compiler would keep some of the accumulators in memory.
template <bool T, int NV>
static __attribute__((noinline)) void tile(i64 kc, const float* a, i64 lda, const float* b, i64 ldb, float* c,
                                                       i64 ldc, bool add) {
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) acc[r][n] = add ? load<vf>(c + r * ldc + n * W) : vf{};
  for (i64 k = 0; k < kc; k++) {
    vf x[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) x[n] = load<vf>(b + k * ldb + n * W);
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
      vf y = as<vf>(T ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) acc[r][n] = fma(y, x[n], acc[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) store<vf>(c + r * ldc + n * W, acc[r][n]);
}

// Six rows of C, n columns.
template <bool T>
static void rows(i64 n, i64 kc, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc, bool add) {
  i64 x = 0;
  for (; x + PANEL * W <= n; x += PANEL * W) tile<T, PANEL>(kc, a, lda, b + x, ldb, c + x, ldc, add);
  if constexpr (PANEL > 2)
    for (; x + 2 * W <= n; x += 2 * W) tile<T, 2>(kc, a, lda, b + x, ldb, c + x, ldc, add);
  for (; x < n; x += W) tile<T, 1>(kc, a, lda, b + x, ldb, c + x, ldc, add);
}

constexpr i64 NR = PANEL * W;
// Six rows of C, columns [c0, c1), by a right side that lies in panels of NR columns: [column / NR][kc][NR].
static void rows_by_panels(i64 c0, i64 c1, i64 kc, const float* a, i64 lda, const float* panels, float* c, i64 ldc) {
  for (i64 x = c0; x < c1;) {
    const float* b = panels + x / NR * NR * kc + x % NR;
    i64 left = least(NR - x % NR, c1 - x);
    if (left >= PANEL * W) tile<false, PANEL>(kc, a, lda, b, NR, c + x, ldc, false), x += PANEL * W;
    else if (PANEL > 2 && left >= 2 * W) tile<false, 2>(kc, a, lda, b, NR, c + x, ldc, false), x += 2 * W;
    else tile<false, 1>(kc, a, lda, b, NR, c + x, ldc, false), x += W;
  }
}
