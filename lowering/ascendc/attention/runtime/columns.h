// What comes before the tiles: one-sided columns of all rows and keys, the tiles that each block of rows reads, V
// transposed where the cube cannot, and rows that no tile writes. Every vector core does an equal part.
class Columns {
 public:
  __aicore__ inline Columns(const Operands& o, Program& x) : o(o), x(x) {}
  __aicore__ inline void run() {
    int64_t core = GetBlockIdx(), cores = o.cores * 2, g = 0, kt = 0;
    bool fits = true;
    for (int64_t b = 0; b < o.batch; b++) {
      int64_t q0 = o.query_offsets.GetValue(b), q1 = o.query_offsets.GetValue(b + 1);
      int64_t k0 = o.key_offsets.GetValue(b), k1 = o.key_offsets.GetValue(b + 1);
      for (int64_t row = q0; row < q1; row += o.r, g++)
        if (g % cores == core) fits &= block(b, g, row, least(row + o.r, q1), k0, k1);
      for (int64_t key = k0; key < k1; key += o.c, kt++)
        if (kt % cores == core) fits &= keys(b, kt, key, least(key + o.c, k1));
    }
    int64_t behind = o.query_offsets.GetValue(o.batch), rest = o.q_rows - behind;
    if (!BACKWARD) fill(behind + rest * core / cores, behind + rest * (core + 1) / cores, 0.0f);
    LocalTensor<int32_t> word = x.kept_row<int32_t>(0);
    word.SetValue(0, fits ? 0 : 1);
    copy_out(o.status[core * 8], word, 1);
  }
  // Did a whole number anywhere not fit the width that the instructions were proved for?
  __aicore__ inline bool all_fit() {
    int32_t wide = 0;
    for (int64_t core = 0; core < o.cores * 2; core++) wide |= o.status.GetValue(core * 8);
    return wide == 0;
  }

 private:
  __aicore__ inline void copy_out(const GlobalTensor<int32_t>& to, const LocalTensor<int32_t>& from, int64_t count) {
    PipeBarrier<PIPE_ALL>();
    order<HardEvent::S_MTE3>();
    DataCopyPad(to, from, DataCopyExtParams(1, (uint32_t)(count * 4), 0, 0, 0));
    order<HardEvent::MTE3_S>();
    order<HardEvent::MTE3_V>();
  }
  __aicore__ inline bool block(int64_t b, int64_t g, int64_t row0, int64_t row1, int64_t k0, int64_t k1) {
    bool fits = true;
    int64_t low = INT64_MAX, high = 0;
    LocalTensor<int32_t> words = x.piece<int32_t>(x.spread_at, BLOCK_WORDS);
    for (int64_t row = row0; row < row1; row += x.given_rows) {
      int32_t count = (int32_t)least(x.given_rows, row1 - row);
      for (int32_t y = 0; y < count; y++) {
        int64_t i = o.query_positions.GetValue(row + y);
        low = least(low, x.key_low(b, i)), high = most(high, x.key_high(b, i));
        fits &= x.row_values(b, i, y);
      }
      x.row_extremes(words, count, row == row0);
      for (int k = 0; k < ROW_VALUES; k++) copy_out(o.row_columns[k * o.q_rows + row], x.kept_row<int32_t>(k), count);
      for (int64_t h = 0; h < (HEAD_ROW_VALUES ? o.heads : 0); h++) {
        for (int32_t y = 0; y < count; y++) fits &= x.head_row_values(b, h, o.query_positions.GetValue(row + y), y);
        for (int k = 0; k < HEAD_ROW_VALUES; k++)
          copy_out(o.row_columns[(ROW_VALUES + k * o.heads + h) * o.q_rows + row], x.kept_row<int32_t>(ROW_VALUES + k), count);
      }
    }
    int64_t first = HAS_LOW ? first_key(low, k0, k1) - k0 : 0, last = HAS_HIGH ? first_key(high, k0, k1) - k0 : k1 - k0;
    bool empty = first >= last;
    words.SetValue(0, empty ? 0 : (int32_t)(first / o.c));
    words.SetValue(1, empty ? 0 : (int32_t)((last + o.c - 1) / o.c));
    words.SetValue(2, (int32_t)last);
    copy_out(o.blocks[g * BLOCK_WORDS], words, FIRST_WORD + 2 * (EXTREME_ROWS + RUN_ROWS));
    if (sizeof(QT) == 4 && BACKWARD && PRODUCT) transpose(o.q.ReinterpretCast<float>(), o.q_heads, o.d, row0, (int32_t)(row1 - row0), o.qt, g, o.r);
    if (sizeof(VT) == 4 && BACKWARD) transpose(o.grad.ReinterpretCast<float>(), o.heads, o.dv, row0, (int32_t)(row1 - row0), o.grad_t, g, o.r);
    if (empty && !BACKWARD) fill(row0, row1, NATURAL ? from_bits(0x7fc00000u) : 0.0f);
    return fits;
  }
  // The first key of a sequence whose position is not below `position`.
  __aicore__ inline int64_t first_key(int64_t position, int64_t k0, int64_t k1) {
    while (k0 < k1) {
      int64_t middle = (k0 + k1) / 2;
      if (o.key_positions.GetValue(middle) < position) k0 = middle + 1;
      else k1 = middle;
    }
    return k0;
  }
  __aicore__ inline bool keys(int64_t b, int64_t kt, int64_t key0, int64_t key1) {
    bool fits = true;
    int32_t count = (int32_t)(key1 - key0);
    for (int32_t y = 0; y < count; y++) fits &= x.column_values(b, o.key_positions.GetValue(key0 + y), y);
    LocalTensor<int32_t> words = x.piece<int32_t>(x.spread_at, KEY_WORDS);
    x.key_extremes(words, count, true);
    if (EXTREME_COLUMNS + RUN_COLUMNS) copy_out(o.key_tiles[kt * KEY_WORDS], words, 2 * (EXTREME_COLUMNS + RUN_COLUMNS));
    for (int k = 0; k < COLUMN_VALUES; k++) copy_out(o.key_columns[k * o.k_rows + key0], x.given_column<int32_t>(k), count);
    for (int64_t h = 0; h < (HEAD_COLUMN_VALUES ? o.heads : 0); h++) {
      for (int32_t y = 0; y < count; y++) fits &= x.head_column_values(b, h, o.key_positions.GetValue(key0 + y), y);
      for (int k = 0; k < HEAD_COLUMN_VALUES; k++)
        copy_out(o.key_columns[(COLUMN_VALUES + k * o.heads + h) * o.k_rows + key0], x.given_column<int32_t>(COLUMN_VALUES + k), count);
    }
    if (sizeof(VT) == 4 && !BACKWARD) transpose(o.v.ReinterpretCast<float>(), o.v_heads, o.dv, key0, count, o.vt, kt, o.c);
    if (sizeof(QT) == 4 && BACKWARD && PRODUCT) transpose(o.k.ReinterpretCast<float>(), o.k_heads, o.d, key0, count, o.kt, kt, o.c);
    return fits;
  }
  // Rows [rows, heads, width] as [heads, width, step]: the cube loads float32 as it lies, and multiplies along what lies
  // together. Eight rows at a time.
  __aicore__ inline void transpose(GlobalTensor<float> rows, int64_t heads, int64_t width, int64_t row0, int32_t count, GlobalTensor<float> to,
                                   int64_t number, int64_t step) {
    int32_t wide = (int32_t)up(width, 8), widest = (int32_t)up(most(o.d, o.dv), 8);  // pieces lie alike for all matrices: copies are under way
    LocalTensor<float> from = x.piece<float>(x.transpose_at, 8 * wide), turned = x.piece<float>(x.transpose_at + 32 * widest, 8 * wide);
    LocalTensor<int32_t> at = x.piece<int32_t>(x.transpose_at + 64 * widest, 64);
    for (int64_t h = 0; h < heads; h++)
      for (int32_t y = 0; y < count; y += 8) {
        int32_t some = (int32_t)least(8, count - y);
        order<HardEvent::V_MTE2>();
        DataCopyPad(from, rows[((row0 + y) * heads + h) * width],
                    DataCopyExtParams((uint16_t)some, (uint32_t)(width * 4), (uint32_t)((heads - 1) * width * 4), 0, 0),
                    DataCopyPadExtParams<float>(true, 0, (uint8_t)(wide - width), 0.0f));
        order<HardEvent::MTE2_V>();
        order<HardEvent::MTE3_V>();
        ArithProgression(at, (int32_t)0, wide * 4, some);
        for (int32_t d = 0; d < width; d++) Gather(turned[d * 8], from, at.ReinterpretCast<uint32_t>(), (uint32_t)(d * 4), (uint32_t)some);
        order<HardEvent::V_MTE3>();
        DataCopyPad(to[(number * heads + h) * width * step + y], turned,
                    DataCopyExtParams((uint16_t)width, (uint32_t)(some * 4), 0, (uint32_t)((step - some) * 4), 0));
      }
  }
  __aicore__ inline void fill(int64_t row0, int64_t row1, float value) {
    int64_t at = row0 * o.heads * o.dv, end = row1 * o.heads * o.dv, most_at_once = x.most_rows * x.most_columns;
    if (at >= end) return;
    LocalTensor<OT> same = x.tile<OT>(0);
    order<HardEvent::MTE3_V>();
    Duplicate(same, (OT)value, (int32_t)least(end - at, most_at_once));
    order<HardEvent::V_MTE3>();
    for (; at < end; at += most_at_once)
      DataCopyPad(o.out[at], same, DataCopyExtParams(1, (uint32_t)(least(end - at, most_at_once) * sizeof(OT)), 0, 0, 0));
    order<HardEvent::MTE3_V>();
    order<HardEvent::MTE3_S>();
  }
  const Operands& o;
  Program& x;
};
