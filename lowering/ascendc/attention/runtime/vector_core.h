// What the vector cores of a forward and of a backward do alike: columns and lists first, then tile after tile what the
// cube core made, with the values of the tile's rows and keys beside it.
class VectorCore {
 protected:
  __aicore__ inline VectorCore(const Operands& o) : o(o), x(o) {}
  template <class Core> __aicore__ inline void tiles(Core& core) {
    if (SHARED) pipe.InitBuffer(in_shared, 2, (uint32_t)(SHARED * o.vr * o.vc * 4));
    x.load_tables();
    Columns columns(o, x);
    columns.run();
    SyncAll<false>();
    DataCacheCleanAndInvalid<int32_t, CacheLine::ENTIRE_DATA_CACHE, DcciDst::CACHELINE_OUT>(o.blocks);
    fits = columns.all_fit();
    group = GetBlockIdx() / 2;
    Walk walk(o, group);
    Step s;
    for (int64_t t = 0; walk.next(s); t++) {
      int32_t half_rows = (int32_t)o.r / 2, from = GetSubBlockIdx() * half_rows;
      int32_t rows = (int32_t)most(least(s.rows - from, half_rows), 0);
      if (rows && s.opens) open(s, from, rows);
      if (rows) columns_of(s);
      x.row_words = o.blocks[s.block * BLOCK_WORDS], x.key_words = o.key_tiles[s.key_tile * KEY_WORDS];
      x.whole = x.proved(), x.inside_tables = x.inside();
      CrossCoreWaitFlag(SCORES);
      core.step(s, (int)(t % DEPTH), from, rows);
      order<HardEvent::V_MTE3>();  // scores that only statistics read have been read
      CrossCoreSetFlag<2, PIPE_MTE3>(WEIGHTS);
    }
  }
  // Where a tile of what heads share lies, in halves of tiles; the last place is of all tiles that have no room.
  __aicore__ inline int64_t kept(const Step& s) { return GetBlockIdx() * (o.shared_tiles + 1) + least(s.tile, o.shared_tiles); }
  __aicore__ inline int64_t half() { return o.r / 2 * o.c; }
  // Where what the vector code has of a tile at a time lies there, in one piece.
  __aicore__ inline int64_t within_half() { return x.first_row * o.c + x.first_column * x.rows; }
  // The next part of a tile for the vector code: rows y ... and columns c ...
  __aicore__ inline void part(const Step& s, int32_t rows, int32_t y, int32_t c) {
    x.first_row = y, x.first_column = c;
    x.shape((int32_t)least(o.vr, rows - y), (int32_t)least(o.vc, s.columns - c));
  }
  // What all heads share of rows y ... of a tile: made where this core comes to it first, or has no room to keep it.
  __aicore__ inline void begin_shared(const Step& s) {
    if (!SHARED) return;
    x.shared_at = kept(s) * SHARED * half() + within_half(), x.shared_step = half();
    if (s.fresh || s.tile >= o.shared_tiles) x.share();
    shared = in_shared.AllocTensor<float>();
    for (int k = 0; k < SHARED; k++) DataCopy(shared[k * o.vr * o.vc], o.shared[x.shared_at + k * half()], x.n);
    in_shared.EnQue(shared);
    shared = in_shared.DeQue<float>();
    for (int k = 0; k < SHARED; k++) x.arrived[2 + k] = shared[k * o.vr * o.vc];
  }
  __aicore__ inline void end_shared() {
    if (SHARED) in_shared.FreeTensor(shared);
  }
  // A tile from the cube core; what is not meant of it is 0.
  template <class T, class Queue> __aicore__ inline LocalTensor<T> arrive(Queue& queue, const GlobalTensor<T>& from) {
    constexpr int32_t C0 = 32 / sizeof(T);
    LocalTensor<T> s = queue.template AllocTensor<T>();
    int32_t blocks = (int32_t)up(x.columns, C0);
    if (x.columns != x.width) {
      Duplicate(s, (T)0.0f, x.n);
      order<HardEvent::V_MTE2>();
    }
    DataCopyPad(s, from,
                DataCopyExtParams((uint16_t)x.rows, (uint32_t)(x.columns * sizeof(T)), (uint32_t)((o.c - x.columns) * sizeof(T)),
                                  (uint32_t)(x.width - blocks) / C0, 0),
                DataCopyPadExtParams<T>(true, 0, (uint8_t)(blocks - x.columns), (T)0.0f));
    queue.EnQue(s);
    return queue.template DeQue<T>();
  }
  const Operands& o;
  TPipe pipe;
  Program x;
  TQue<TPosition::VECIN, 2> in_shared;
  LocalTensor<float> shared;
  int64_t group = 0;
  bool fits = true;

 private:
  // An item's rows: their columns, and what sums and a softmax begin with.
  __aicore__ inline void open(const Step& s, int32_t from, int32_t rows) {
    x.begin(s.b, s.h);
    order<HardEvent::V_MTE2>();
    for (int k = 0; k < ROW_VALUES + HEAD_ROW_VALUES; k++) {
      int64_t at = k < ROW_VALUES ? k : ROW_VALUES + (k - ROW_VALUES) * o.heads + s.h;
      load(x.kept_row<int32_t>(k), o.row_columns[at * o.q_rows + s.row0 + from], rows);
    }
    order<HardEvent::MTE2_V>();
    for (int k = MOST; k < MOST + KEPT_SUMS; k++) Duplicate(x.kept_row<float>(k), 0.0f, x.given_rows);
    if (PHASES > 1) Duplicate(x.kept_row<float>(MOST), 3.4028234663852886e38f, x.given_rows);
  }
  __aicore__ inline void columns_of(const Step& s) {
    x.first_column = 0;
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
};
