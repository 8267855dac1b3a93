// y[t, r] = query[t] . table[ids[t, r]], in float32; with eps each row of the table is divided by max(its norm, eps).
//
// Blocks share the pairs. A tile holds the rows of `tile` pairs, which are those of `spans` tokens at most, and the queries
// of these tokens; rows that are wider than a tile are read `width` columns at a time. An id that is no row of the table gives NaN.
template <class Tiling> class SampledLogits {
 public:
  __aicore__ inline SampledLogits(TPipe& pipe, GM_ADDR states, GM_ADDR rows, GM_ADDR numbers, GM_ADDR group, GM_ADDR y, const Tiling& tiling)
      : t(tiling) {
    int64_t wide = RoundUp(t.width, 16);
    ids.Init(pipe, numbers, group, t);
    table.Init(pipe, rows, t.rows, t.features, t.tile * wide);
    query.Init(pipe, states, t.tokens, t.features, t.spans * wide);
    sums.Init(pipe, t.tile);
    if (t.cosine) pipe.InitBuffer(squares, t.tile * wide * sizeof(float));
    pipe.InitBuffer(out, 2, RoundUp(t.tile, 16) * sizeof(Q));
    target.SetGlobalBuffer((__gm__ Q*)y, t.tokens * t.samples);
  }
  __aicore__ inline void Process() {
    Share mine = ShareOf(t.tokens * t.samples, GetBlockIdx(), GetBlockNum());
    for (int64_t pair = mine.begin, rows; pair < mine.end; pair += rows) {
      rows = Least(t.tile, mine.end - pair);
      int64_t first = pair / t.samples, tokens = (pair + rows - 1) / t.samples - first + 1, picks[MOST], places[MOST];
      for (int64_t i = 0; i < rows; i++) picks[i] = ids(pair + i);
      for (int64_t i = 0; i < tokens; i++) places[i] = first + i;
      sums.Clear(0);
      sums.Clear(1);
      for (int64_t column = 0; column < t.features; column += t.width) {
        int64_t n = Least(t.width, t.features - column);
        Tile tile = TileOf<T>(0, rows, column, n), states = TileOf<Q>(0, tokens, column, n);
        LocalTensor<float> x = table(picks, tile), q = query(places, states);
        if (t.cosine) AddSquares(x, tile);
        for (int64_t i = 0; i < tokens; i++) {
          int64_t begin = Most((first + i) * t.samples - pair, 0), end = Least((first + i + 1) * t.samples - pair, rows);
          Apply<Sum::MUL, Along::COLUMNS>(x[begin * tile.stride], q[i * states.stride], {0, end - begin, column, n, tile.stride});
        }
        sums.AddSums(0, x, tile);
      }
      Store(pair, rows);
    }
  }

 private:
  const Tiling& t;
  Ids<I, Tiling> ids;
  Picked<T> table;
  Picked<Q> query;
  RowNumbers sums;
  GlobalTensor<Q> target;
  TBuf<TPosition::VECCALC> squares;
  TQue<TPosition::VECOUT, 1> out;

  __aicore__ inline void AddSquares(const LocalTensor<float>& x, const Tile& tile) {
    LocalTensor<float> square = squares.template Get<float>();
    Mul(square, x, x, tile.Numbers());
    Done();
    sums.AddSums(1, square, tile);
  }
  __aicore__ inline void Store(int64_t pair, int64_t rows) {
    LocalTensor<float> total = sums[0];
    if (t.cosine) {
      sums.Norms(1, Real(t.eps));
      Div(total, total, sums[1], rows);
      Done();
    }
    LocalTensor<Q> local = out.template AllocTensor<Q>();
    Narrow(local, total, rows);
    out.EnQue(local);
    local = out.template DeQue<Q>();
    CopyOut(target[pair], local, 1, rows * sizeof(Q), 0);
    out.FreeTensor(local);
  }
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR query, GM_ADDR table, GM_ADDR ids, GM_ADDR group, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  SampledLogits<Tiling> kernel(pipe, query, table, ids, group, y, t);
  kernel.Process();
}
