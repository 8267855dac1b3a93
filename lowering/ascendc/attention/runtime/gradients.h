// A vector core of the backward: from scores and gradients of weights (dP = dO Vt) to weights and gradients of scores, and
// the leaves' gradients on the way. Leaves that fit lie in the unified buffer until the end; all sums reach global memory
// by atomic additions in float32, in an order that differs from run to run, and become the outputs' dtypes at last.
class Vector {
 public:
  __aicore__ inline Vector(const Operands& o) : o(o), x(o) {}
  __aicore__ inline void run() {
    pipe.InitBuffer(x.memory, (uint32_t)o.scratch);
    if (PRODUCT) pipe.InitBuffer(in_s, 1, (uint32_t)(o.vr * o.c * 4));
    pipe.InitBuffer(in_g, 1, (uint32_t)(o.vr * o.c * 4));
    pipe.InitBuffer(x.out, 1, (uint32_t)(o.vr * o.c * 4));
    x.layout();
    clear();
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
    x.flush_tables();
    SyncAll<false>();
    x.finish(fits && x.fits);
  }

 private:
  // Sums in global memory start at zero.
  __aicore__ inline void clear() {
    int64_t core = GetBlockIdx(), cores = o.cores * 2, most_at_once = o.vr * o.c;
    Duplicate(x.tile<float>(0), 0.0f, (int32_t)most_at_once);
    order<HardEvent::V_MTE3>();
    int64_t end = o.sums_count * (core + 1) / cores;
    for (int64_t at = o.sums_count * core / cores; at < end; at += most_at_once)
      DataCopyPad(o.sums[at], x.tile<float>(0), DataCopyExtParams(1, (uint32_t)(least(end - at, most_at_once) * 4), 0, 0, 0));
    order<HardEvent::MTE3_V>();
    order<HardEvent::MTE3_S>();
  }
  __aicore__ inline void step(const Step& s, int slot) {
    int32_t half_rows = (int32_t)o.r / 2, from = GetSubBlockIdx() * half_rows;
    int32_t rows = (int32_t)most(least(s.rows - from, half_rows), 0);
    bool last = s.phase == PHASES - 1;
    if (rows && s.opens) open(s, from, rows);
    if (rows) columns(s);
    CrossCoreWaitFlag(SCORES);
    for (int32_t y = 0; y < rows; y += (int32_t)o.vr) {
      x.first_row = y;
      x.shape((int32_t)least(o.vr, rows - y), s.columns);
      x.slot_row = from + y, x.slot = group * DEPTH + slot;
      int64_t at = (x.slot * o.r + from + y) * o.c;
      if (PRODUCT) x.arrived[0] = arrive(in_s, o.s[at]);
      x.arrived[1] = arrive(in_g, o.g[at]);
      if (last) x.gradients();
      else if (s.phase == 0) x.statistics();
      else x.inner();
      if (PRODUCT) in_s.FreeTensor(x.arrived[0]);
      in_g.FreeTensor(x.arrived[1]);
    }
    if (rows && last) x.flush_columns(s.b, s.h, s.key0, s.columns);
    if (rows && s.closes) x.flush_rows(s.b, s.h, s.row0 + from, rows);
    order<HardEvent::V_MTE3>();  // scores that only statistics read have been read
    CrossCoreSetFlag<2, PIPE_MTE3>(WEIGHTS);
  }
  __aicore__ inline void open(const Step& s, int32_t from, int32_t rows) {
    x.begin(s.b, s.h);
    order<HardEvent::V_MTE2>();
    for (int k = 0; k < ROW_VALUES + HEAD_ROW_VALUES; k++) {
      int64_t at = k < ROW_VALUES ? k : ROW_VALUES + (k - ROW_VALUES) * o.heads + s.h;
      load(x.kept_row<int32_t>(k), o.row_columns[at * o.q_rows + s.row0 + from], rows);
    }
    order<HardEvent::MTE2_V>();
    for (int k = MOST; k < MOST + KEPT_SUMS; k++) Duplicate(x.kept_row<float>(k), 0.0f, x.given_rows);
    if (PHASES > 1) Duplicate(x.kept_row<float>(MOST), -3.4028234663852886e38f, x.given_rows);
  }
  __aicore__ inline void columns(const Step& s) {
    x.shape(1, s.columns);
    for (int k = 0; k < COLUMN_VALUES + HEAD_COLUMN_VALUES && x.width != x.columns; k++)
      Duplicate(x.given_column<int32_t>(k), (int32_t)0, x.width);
    for (int k = 0; k < COLUMN_SUMS; k++) Duplicate(x.given_column<float>(COLUMN_VALUES + HEAD_COLUMN_VALUES + k), 0.0f, x.width);
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
  template <class Queue> __aicore__ inline LocalTensor<float> arrive(Queue& queue, const GlobalTensor<float>& from) {
    LocalTensor<float> s = queue.template AllocTensor<float>();
    int32_t blocks = (int32_t)up(x.columns, 8);
    if (x.columns != x.width) {
      Duplicate(s, 0.0f, x.n);
      order<HardEvent::V_MTE2>();
    }
    DataCopyPad(s, from, DataCopyExtParams((uint16_t)x.rows, (uint32_t)x.columns * 4, (uint32_t)(o.c - x.columns) * 4, (uint32_t)(x.width - blocks) / 8, 0),
                DataCopyPadExtParams<float>(true, 0, (uint8_t)(blocks - x.columns), 0.0f));
    queue.EnQue(s);
    return queue.template DeQue<float>();
  }
  const Operands& o;
  TPipe pipe;
  Program x;
  TQue<TPosition::VECIN, 1> in_s, in_g;
  int64_t group = 0;
  bool fits = true;
};
