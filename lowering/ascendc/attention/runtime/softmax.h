
// Of Program: a softmax over rows, tile by tile. Statistics come first: the largest score of a row, negative,
// in MOST, and in SUM the sum of what all are beside it. Scores are x times `factor`, a block of one number, where `scaled`; else x.
template <bool scaled>
__aicore__ inline void shift_rows(const LocalTensor<float>& x, const LocalTensor<float>& by, const LocalTensor<float>& factor) {
  if constexpr (!scaled) return AddRow(x, x, by);
  spread_out(by);
  for (int32_t c = 0; c < width; c += 64)
    FusedMulAdd(x[c], factor, spread<float>(), (uint64_t)64, rows, BinaryRepeatParams(1, 0, 0, width / 8, 0, 1));
}
// x becomes exp(score - largest); what has been summed of its rows follows the largest score, `inner` (below 0: none), too.
template <bool scaled>
__aicore__ inline void begin_statistics(const LocalTensor<float>& x, const LocalTensor<float>& work, const LocalTensor<float>& now,
                                        const LocalTensor<float>& scale, const LocalTensor<float>& factor, float number, int inner) {
  LocalTensor<float> least_ = given_row<float>(MOST), sum = given_row<float>(SUM);
  cut(x, from_bits(0xff800000u));
  if (rows != rows8) Duplicate(now, 0.0f, rows8);
  largest_of_rows(now, x, work);
  Muls(now, now, -number, rows8);
  Min(now, now, least_, rows8);  // never above the greatest number, so that -inf gives 0 and a row without keys no NaN
  Sub(scale, now, least_, rows8);
  Exp(scale, scale, rows8);
  Mul(sum, sum, scale, rows8);
  if (inner >= 0) Mul(given_row<float>(inner), given_row<float>(inner), scale, rows8);
  Adds(least_, now, 0.0f, rows8);
  shift_rows<scaled>(x, now, factor);
  Exp(x, x, n);
}
__aicore__ inline void end_statistics(const LocalTensor<float>& x, const LocalTensor<float>& now) {
  LocalTensor<float> sum = given_row<float>(SUM);
  if (rows != rows8) Duplicate(now, 0.0f, rows8);
  row_sums(now, x);
  Add(sum, sum, now, rows8);
}
// After a row's last tile: SUM becomes -(largest + ln sum), which is as near to a score as a score is to what it stands for.
__aicore__ inline void finish_statistics(int inner) {
  LocalTensor<float> sum = given_row<float>(SUM);
  Maxs(sum, sum, NATURAL ? 0.0f : 1e-30f, rows8);
  if (inner >= 0) Div(given_row<float>(inner), given_row<float>(inner), sum, rows8);
  Ln(sum, sum, rows8);
  Sub(sum, given_row<float>(MOST), sum, rows8);
}
// x becomes the softmax.
template <bool scaled> __aicore__ inline void normalise(const LocalTensor<float>& x, const LocalTensor<float>& factor) {
  shift_rows<scaled>(x, given_row<float>(SUM), factor);
  Exp(x, x, n);
}
