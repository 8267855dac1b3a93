// A vector core: half of the rows of every tile. Scores come from the cube core through global memory, and weights go back.
class Vector {
 public:
  __aicore__ inline Vector(const Operands& o) : o(o), x(o) {}
  __aicore__ inline void run() {
    pipe.InitBuffer(x.memory, (uint32_t)o.scratch);
    if (PRODUCT) pipe.InitBuffer(in, 2, (uint32_t)(o.vr * o.c * 4));
    pipe.InitBuffer(out, 2, (uint32_t)(o.vr * o.c * sizeof(VT)));
    x.layout();
    x.load_tables();
    Columns columns(o, x);
    columns.run();
    SyncAll<false>();
    DataCacheCleanAndInvalid<int32_t, CacheLine::ENTIRE_DATA_CACHE, DcciDst::CACHELINE_OUT>(o.blocks);
    fits = columns.all_fit();
    group = GetBlockIdx() / 2;
    Walk walk(o, group);
    Step s;
    for (int64_t t = 0; walk.next(s); t++) step(s, (int)(t % DEPTH));
  }

 private:
  __aicore__ inline void step(const Step& s, int slot) {
    int32_t half_rows = (int32_t)o.r / 2, from = GetSubBlockIdx() * half_rows;
    int32_t rows = (int32_t)most(least(s.rows - from, half_rows), 0);
    if (rows && s.opens) open(s, from, rows);
    if (rows) columns(s);
    CrossCoreWaitFlag(SCORES);
    for (int32_t y = 0; y < rows; y += (int32_t)o.vr) {
      x.first_row = y;
      x.shape((int32_t)least(o.vr, rows - y), s.columns);
      int64_t at = ((group * DEPTH + slot) * o.r + from + y) * o.c;
      if (PRODUCT) scores(at);
      if (s.phase < PHASES - 1) x.statistics();
      else weights(at);
      if (PRODUCT) in.FreeTensor(x.arrived[0]);
    }
    order<HardEvent::V_MTE3>();  // scores that only statistics read have been read
    CrossCoreSetFlag<2, PIPE_MTE3>(WEIGHTS);
  }
  // An item's rows: their columns, and what a softmax begins with.
  __aicore__ inline void open(const Step& s, int32_t from, int32_t rows) {
    x.begin(s.b, s.h);
    order<HardEvent::V_MTE2>();
    for (int k = 0; k < ROW_VALUES + HEAD_ROW_VALUES; k++) {
      int64_t at = k < ROW_VALUES ? k : ROW_VALUES + (k - ROW_VALUES) * o.heads + s.h;
      load(x.kept_row<int32_t>(k), o.row_columns[at * o.q_rows + s.row0 + from], rows);
    }
    order<HardEvent::MTE2_V>();
    if (PHASES == 1) return;
    Duplicate(x.kept_row<float>(MOST), -3.4028234663852886e38f, x.given_rows);
    Duplicate(x.kept_row<float>(SUM), 0.0f, x.given_rows);
  }
  __aicore__ inline void columns(const Step& s) {
    x.shape(1, s.columns);
    for (int k = 0; k < COLUMN_VALUES + HEAD_COLUMN_VALUES && x.width != x.columns; k++)
      Duplicate(x.given_column<int32_t>(k), (int32_t)0, x.width);
    order<HardEvent::V_MTE2>();
    for (int k = 0; k < COLUMN_VALUES + HEAD_COLUMN_VALUES; k++) {
      int64_t at = k < COLUMN_VALUES ? k : COLUMN_VALUES + (k - COLUMN_VALUES) * o.heads + s.h;
      load(x.given_column<int32_t>(k), o.key_columns[at * o.k_rows + s.key0], s.columns);
    }
    order<HardEvent::MTE2_V>();
  }
  __aicore__ inline void load(const LocalTensor<int32_t>& to, const GlobalTensor<int32_t>& from, int32_t count) {
    DataCopyPad(to, from, DataCopyExtParams(1, (uint32_t)count * 4, 0, 0, 0),
                DataCopyPadExtParams<int32_t>(true, 0, (uint8_t)(up(count, 8) - count), 0));
  }
  __aicore__ inline void scores(int64_t at) {
    LocalTensor<float> s = in.AllocTensor<float>();
    int32_t blocks = (int32_t)up(x.columns, 8);
    if (x.columns != x.width) {
      Duplicate(s, 0.0f, x.n);
      order<HardEvent::V_MTE2>();
    }
    DataCopyPad(s, o.s[at], DataCopyExtParams((uint16_t)x.rows, (uint32_t)x.columns * 4, (uint32_t)(o.c - x.columns) * 4, (uint32_t)(x.width - blocks) / 8, 0),
                DataCopyPadExtParams<float>(true, 0, (uint8_t)(blocks - x.columns), 0.0f));
    in.EnQue(s);
    x.arrived[0] = in.DeQue<float>();
  }
  __aicore__ inline void weights(int64_t at) {
    LocalTensor<float> p = x.weights();
    if (!fits || !x.fits) Duplicate(p, from_bits(0x7fc00000u), x.n);
    LocalTensor<VT> w = out.AllocTensor<VT>();
    if (sizeof(VT) == 4) DataCopy(w.ReinterpretCast<float>(), p, x.n);
    else Cast(w, p, RoundMode::CAST_RINT, x.n);
    out.EnQue(w);
    w = out.DeQue<VT>();
    uint32_t bytes = (uint32_t)(x.columns * sizeof(VT)), gap = (uint32_t)(x.width * sizeof(VT) - up(bytes, 32)) / 32;
    DataCopyPad(o.p[at], w, DataCopyExtParams((uint16_t)x.rows, bytes, gap, (uint32_t)((o.c - x.columns) * sizeof(VT)), 0));
    out.FreeTensor(w);
  }
  const Operands& o;
  TPipe pipe;
  Program x;
  TQue<TPosition::VECIN, 2> in;
  TQue<TPosition::VECOUT, 2> out;
  int64_t group = 0;
  bool fits = true;
};
