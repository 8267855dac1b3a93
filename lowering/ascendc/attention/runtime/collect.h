// Of the backward's Program: gradients of tables that pairs read and all heads share. Every head adds its tile to one in
// the workspace; at the last head of a block that a core has the sum reaches the tables, without a look at single pairs
// where the tile is a strip of the table's diagonals, or where the table is read at a step function.
int64_t collected_at = 0, collected_step = 0;
bool first_head = false;
__aicore__ inline void collect(int k, const LocalTensor<float>& tile_) {
  LocalTensor<float> w = out.AllocTensor<float>();
  DataCopy(w, tile_, n);
  out.EnQue(w);
  w = out.DeQue<float>();
  if (!first_head) SetAtomicAdd<float>();  // `out` has one buffer: what an earlier head wrote is there
  DataCopy(o.collected[collected_at + k * collected_step], w, n);
  if (!first_head) SetAtomicNone();
  out.FreeTensor(w);
}
// Do values step by the same number, and by which? Two words: the step (0: not the same, NONE: of one value), and the
// last value.
static constexpr int32_t NONE = INT32_MIN;
__aicore__ inline void run_of(const LocalTensor<int32_t>& words, int32_t at, const LocalTensor<int32_t>& values, int32_t count, bool fresh) {
  int32_t step = fresh ? NONE : words.GetValue(at), before = fresh ? values.GetValue(0) : words.GetValue(at + 1);
  for (int32_t y = fresh ? 1 : 0; y < count; y++) {
    int32_t value = values.GetValue(y), by = value - before;
    step = step == NONE || step == by ? by : 0;
    before = value;
  }
  words.SetValue(at, step);
  words.SetValue(at + 1, before);
}
__aicore__ inline bool rows_step(int k, int32_t by) { return steps_by(row_words.GetValue(FIRST_WORD + 2 * EXTREME_ROWS + 2 * k), by); }
__aicore__ inline bool keys_step(int k, int32_t by) { return steps_by(key_words.GetValue(2 * EXTREME_COLUMNS + 2 * k), by); }
__aicore__ inline bool steps_by(int32_t step, int32_t by) { return step == by || step == NONE; }
// A tile whose rows read a table one element further left each: row after row is added to the strip of its shift modulo
// 32 bytes, where it lies aligned; strip p begins p elements behind the first that the tile reads.
__aicore__ inline void add_diagonals(const LocalTensor<float>& x, const LocalTensor<int32_t>& row_, const LocalTensor<int32_t>& column_,
                                     const LocalTensor<float>& strips, const GlobalTensor<float>& to) {
  int32_t length = (int32_t)up(most_rows + most_columns, 8);
  int64_t first = (row_.GetValue(rows - 1) + column_.GetValue(0)) / 4;
  order<HardEvent::MTE3_V>();
  Duplicate(strips, 0.0f, 8 * length);
  for (int32_t y = 0; y < rows; y++) {
    int32_t shift = rows - 1 - y, p = shift % 8;
    LocalTensor<float> strip = strips[p * length + shift - p];
    Add(strip, strip, x[y * width], columns);
  }
  order<HardEvent::V_MTE3>();
  SetAtomicAdd<float>();
  for (int32_t p = 0; p < 8 && p < rows; p++)
    DataCopyPad(to[first + p], strips[p * length], DataCopyExtParams(1, (uint32_t)(rows + columns - 1 - p) * 4, 0, 0, 0));
  SetAtomicNone();
}
// Sizes of numbers in [low, high].
__aicore__ inline int64_t least_size(int64_t low, int64_t high) { return low > 0 ? low : high < 0 ? -high : 0; }
__aicore__ inline int64_t most_size(int64_t low, int64_t high) { return most(high, -low); }
// How many edges are not above a number.
__aicore__ inline int32_t step_at(const LocalTensor<float>& edges, int32_t count, float number) {
  int32_t from = 0;
  while (from < count) {
    int32_t middle = (from + count) / 2;
    if (edges.GetValue(middle) <= number) from = middle + 1;
    else count = middle;
  }
  return from;
}
// Sums of x by the step that `number` is on, between two steps: eight lanes of `sums` a step.
__aicore__ inline void add_steps(const LocalTensor<float>& x, const LocalTensor<float>& number, const LocalTensor<float>& work,
                                 LocalTensor<uint16_t> beyond, LocalTensor<uint16_t> next, const LocalTensor<uint16_t>& here,
                                 const LocalTensor<float>& edges, int32_t count, const LocalTensor<float>& sums, int64_t least_, int64_t most_) {
  int32_t first = step_at(edges, count, (float)least_), last = step_at(edges, count, (float)most_);
  for (int32_t k = first; k <= last; k++) {
    if (first == last) DataCopy(work, x, n);
    else {
      if (k < last) {
        CompareScalar(next.ReinterpretCast<uint8_t>(), number, edges.GetValue(k), CMPMODE::GE, n);
        Not(here, next, n / 16);
        if (k > first) And(here, here, beyond, n / 16);
      }
      Select(work, k < last ? here : beyond, x, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
      LocalTensor<uint16_t> free = beyond;
      beyond = next, next = free;
    }
    for (int32_t m = 1; m < n / 64; m += 255)  // repeat after repeat to the first 64
      Add(work, work[m * 64], work, (uint64_t)64, (int32_t)least(255, n / 64 - m), BinaryRepeatParams(1, 1, 1, 0, 8, 0));
    BlockReduceSum(work, work, 1, 64, 1, 1, 8);
    Add(sums[k * 8], sums[k * 8], work, 8);
  }
}
// The sum of a step.
__aicore__ inline float of_lanes(const LocalTensor<float>& sums, int32_t k) {
  float sum = 0.0f;
  for (int32_t lane = 0; lane < 8; lane++) sum += sums.GetValue(k * 8 + lane);
  return sum;
}
