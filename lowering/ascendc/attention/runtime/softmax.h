// Of Program: a softmax over rows, tile by tile. Statistics come first; `x` is lost.
__aicore__ inline void gather_statistics(const LocalTensor<float>& x, const LocalTensor<float>& work, const LocalTensor<float>& now,
                                          const LocalTensor<float>& scale) {
  LocalTensor<float> most_ = given_row<float>(MOST), sum = given_row<float>(SUM);
  cut(x, from_bits(0xff800000u));
  Duplicate(now, -3.4028234663852886e38f, rows8);
  largest_of_rows(now, x, work);
  Max(now, now, most_, rows8);  // never below the least number, so that -inf gives 0 and a row without keys no NaN
  Sub(scale, most_, now, rows8);
  Exp(scale, scale, rows8);
  Mul(sum, sum, scale, rows8);
  Adds(most_, now, 0.0f, rows8);
  SubRow(x, x, now);
  Exp(x, x, n);
  Duplicate(now, 0.0f, rows8);
  row_sums(now, x);
  Add(sum, sum, now, rows8);
}
// exp(x - (largest + ln sum)): what is subtracted is as near as a score is to what it stands for.
__aicore__ inline void normalise(const LocalTensor<float>& dst, const LocalTensor<float>& x, const LocalTensor<float>& total) {
  Maxs(total, given_row<float>(SUM), NATURAL ? 0.0f : 1e-30f, rows8);
  Ln(total, total, rows8);
  Add(total, total, given_row<float>(MOST), rows8);
  SubRow(dst, x, total);
  Exp(dst, dst, n);
}