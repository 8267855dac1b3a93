// The gradients of query and table from that of y[t, r] = query[t] . row(t, r), row(t, r) = table[ids[t, r]] / norm(t, r).
//
//   grad_query[t] = sum over r of grad[t, r] * row(t, r)
//   grad_table[v] = sum over pairs with the id v of grad * (query - row * (row . query)) / norm; norm = max(|table[v]|, eps)
//
// Without eps there is no norm, and nothing is taken off. Nothing is taken off below eps, where the norm is a constant.
// Blocks share the tokens, and sum the rows of a token tile by tile, in a tile pairwise. For the table every block reads
// all ids and takes those whose rows it owns, `tile` at a time: a row is summed in the order of its pairs. A pair whose id
// is no row of the table makes its token's gradient NaN, and counts nothing in the table; nor does the id `padding`.
template <int SIZE> struct Bits { using type = uint32_t; };
template <> struct Bits<2> { using type = uint16_t; };

template <class Tiling> class SampledLogitsBackward {
 public:
  using Stored = typename Bits<sizeof(Q)>::type;  // numbers of the gradient that the scalar unit moves and does not read
  __aicore__ inline SampledLogitsBackward(TPipe& pipe, GM_ADDR grad, GM_ADDR states, GM_ADDR rows, GM_ADDR numbers, GM_ADDR group,
                                          GM_ADDR grad_query, GM_ADDR grad_table, GM_ADDR workspace, const Tiling& tiling)
      : t(tiling), wide(t.tile * RoundUp(t.width, 16)) {
    ids.Init(pipe, numbers, group, t);
    table.Init(pipe, rows, t.rows, t.features, wide);
    query.Init(pipe, states, t.tokens, t.features, wide);
    sums.Init(pipe, t.tile);
    if (t.cosine) pipe.InitBuffer(products, wide * sizeof(float));
    gradient.SetGlobalBuffer((__gm__ Q*)grad, t.tokens * t.samples);
    pipe.InitBuffer(arriving, 2, RoundUp(t.tile, 16) * sizeof(Q));
    pipe.InitBuffer(out, 2, wide * sizeof(float));
    if (t.need_query) {
      pipe.InitBuffer(total, RoundUp(t.width, 16) * sizeof(float));
      to_query.SetGlobalBuffer((__gm__ Q*)grad_query, t.tokens * t.features);
    }
    if (t.need_table) {
      scalars.Init(pipe, grad, t.tokens * t.samples);
      pipe.InitBuffer(taken, RoundUp(t.tile, 16) * sizeof(Q));
      owned.Init(pipe, grad_table, workspace, t);
    }
  }
  __aicore__ inline void Process() {
    if (t.need_query)
      for (int64_t column = 0; column < t.features; column += t.width) OfQuery(column, Least(t.width, t.features - column));
    if (!t.need_table) return;
    owned.Clear();
    for (int64_t column = 0; column < t.features; column += t.width) OfTable(column, Least(t.width, t.features - column));
    owned.Finish();
  }

 private:
  static constexpr int FACTOR = 0, SQUARES = 1, PRODUCTS = 2, FLOWS = 3;  // the numbers of a pair
  const Tiling& t;
  int64_t wide, held = 0, picks[MOST], places[MOST];  // of the pairs of a tile: their ids, and their tokens
  Ids<I, Tiling> ids;
  Picked<T> table;
  Picked<Q> query;
  RowNumbers sums;
  OwnedRows<T, Tiling> owned;
  Numbers<Stored> scalars;
  GlobalTensor<Q> gradient, to_query;
  TBuf<TPosition::VECCALC> products, total, taken;
  TQue<TPosition::VECIN, 1> arriving;
  TQue<TPosition::VECOUT, 1> out;

  template <class Item> __aicore__ inline Tile Part(int64_t rows, int64_t column) const {
    return TileOf<Item>(0, rows, column, Least(t.width, t.features - column));
  }
  __aicore__ inline void Begin(int64_t rows) {
    held = rows;
    for (int k = 0; k < KINDS; k++) sums.Clear(k);
  }

  // ------------------------------------------------------------------------------------------------- query
  __aicore__ inline void OfQuery(int64_t column, int64_t n) {
    Share mine = ShareOf(t.tokens, GetBlockIdx(), GetBlockNum());
    LocalTensor<float> sum = total.template Get<float>();
    Duplicate(sum, 0.0f, RoundUp(n, 16));
    Done();
    if (!t.samples)
      for (int64_t token = mine.begin; token < mine.end; token++) Store(token, column, n);
    int64_t end = mine.end * t.samples;
    for (int64_t pair = mine.begin * t.samples, rows; pair < end; pair += rows) {
      rows = Least(t.tile, end - pair);
      Begin(rows);
      for (int64_t i = 0; i < rows; i++) picks[i] = ids(pair + i);
      LoadGradient(pair, rows);
      Tile tile = Part<T>(rows, column);
      LocalTensor<float> x = Measured(tile);
      sums.Scale(x, FACTOR, tile);
      for (int64_t at = 0, more; at < rows; at += more) {
        int64_t token = (pair + at) / t.samples, last = (token + 1) * t.samples - pair;
        more = Least(last, rows) - at;
        LocalTensor<float> of_token = x[at * tile.stride];
        FoldRows(of_token, {0, more, column, n, tile.stride});
        Add(sum, sum, of_token, n);
        Done();
        if (last <= rows) Store(token, column, n);
      }
    }
  }
  __aicore__ inline void LoadGradient(int64_t pair, int64_t rows) {
    LocalTensor<Q> local = arriving.template AllocTensor<Q>();
    CopyIn(local, gradient[pair], 1, rows * sizeof(Q), 0);
    arriving.EnQue(local);
    local = arriving.template DeQue<Q>();
    Widen(sums[FACTOR], local, rows);
    arriving.FreeTensor(local);
  }
  // The rows of the pairs; factors are divided by their norms, which are sums over whole rows.
  __aicore__ inline LocalTensor<float> Measured(const Tile& tile) {
    if (!t.cosine) return table(picks, tile);
    LocalTensor<float> x;
    for (int64_t column = 0; column < t.features; column += t.width) {
      Tile part = Part<T>(held, column);
      x = table(picks, part);
      AddSquares(x, part);
    }
    sums.Norms(SQUARES, Real(t.eps));
    Div(sums[FACTOR], sums[FACTOR], sums[SQUARES], held);
    Done();
    return t.parts > 1 ? table(picks, tile) : x;
  }
  __aicore__ inline void AddSquares(const LocalTensor<float>& x, const Tile& tile) {
    LocalTensor<float> product = products.template Get<float>();
    Mul(product, x, x, tile.Numbers());
    Done();
    sums.AddSums(SQUARES, product, tile);
  }
  // The sum of a token, which begins again at 0.
  __aicore__ inline void Store(int64_t token, int64_t column, int64_t n) {
    LocalTensor<float> sum = total.template Get<float>();
    LocalTensor<Q> local = out.template AllocTensor<Q>();
    Narrow(local, sum, n);
    Duplicate(sum, 0.0f, RoundUp(n, 16));
    Done();
    out.EnQue(local);
    local = out.template DeQue<Q>();
    CopyOut(to_query[token * t.features + column], local, 1, n * sizeof(Q), 0);
    out.FreeTensor(local);
  }

  // ------------------------------------------------------------------------------------------------- table
  __aicore__ inline void OfTable(int64_t column, int64_t n) {
    LocalTensor<Stored> values = taken.template Get<Stored>();
    held = 0;
    Order<HardEvent::V_S>();
    for (int64_t token = 0, pair = 0; token < t.tokens; token++)
      for (int64_t sample = 0; sample < t.samples; sample++, pair++) {
        int64_t id = ids(pair);
        if (id == NOWHERE || id == t.padding || !owned.Mine(id)) continue;
        values.SetValue(held, scalars(pair));
        picks[held] = id, places[held++] = token;
        if (held == t.tile) Flush(column, n);
      }
    if (held) Flush(column, n);
  }
  __aicore__ inline void Flush(int64_t column, int64_t n) {
    Begin(held);
    Order<HardEvent::S_V>();
    Widen(sums[FACTOR], taken.template Get<Q>(), held);
    Tile states = Part<Q>(held, column), tile = Part<T>(held, column);
    LocalTensor<float> q = t.cosine ? TakenOff(states, tile) : query(places, states);
    if (!t.cosine) sums.Scale(q, FACTOR, states);
    LocalTensor<float> local = out.template AllocTensor<float>();
    Muls(local, q, 1.0f, states.Numbers());
    Done();
    out.EnQue(local);
    local = out.template DeQue<float>();
    owned.Add(local, picks, held, column, n, states.stride);
    out.FreeTensor(local);
    held = 0;
    Order<HardEvent::V_S>();
  }
  // factor * query / norm - (factor * flows * (table . query) / norm^3) * table, of the pairs of a tile.
  __aicore__ inline LocalTensor<float> TakenOff(const Tile& states, const Tile& tile) {
    LocalTensor<float> x, q, product = products.template Get<float>();
    for (int64_t column = 0; column < t.features; column += t.width) {
      Tile rows = Part<T>(held, column), of = Part<Q>(held, column);
      x = table(picks, rows), q = query(places, of);
      AddSquares(x, rows);
      Muls(product, x, 1.0f, rows.Numbers());
      Done();
      Pairwise<Sum::MUL>(product, rows, q, of);
      sums.AddSums(PRODUCTS, product, rows);
    }
    Slopes();
    if (t.parts > 1) x = table(picks, tile), q = query(places, states);
    sums.Scale(q, FACTOR, states);
    sums.Scale(x, PRODUCTS, tile);
    Pairwise<Sum::SUB>(q, states, x, tile);
    return q;
  }
  // What query and table are multiplied by, from sums of squares and of products.
  __aicore__ inline void Slopes() {
    float eps = Real(t.eps);
    LocalTensor<float> factor = sums[FACTOR], norm = sums[SQUARES], slope = sums[PRODUCTS], flows = sums[FLOWS];
    sums.Norms(SQUARES, 0.0f);
    Mins(flows, norm, eps, sums.padded);  // 1 where the norm is eps or more, 0 below: no less than eps * 2^-24 is lacking
    Done();
    Adds(flows, flows, -eps, sums.padded);
    Done();
    Muls(flows, flows, 1e38f, sums.padded);
    Done();
    Adds(flows, flows, 1.0f, sums.padded);
    Done();
    Maxs(flows, flows, 0.0f, sums.padded);
    Done();
    Maxs(norm, norm, eps, sums.padded);
    Done();
    Div(factor, factor, norm, held);
    Mul(slope, slope, flows, held);
    Done();
    for (int k = 0; k < 2; k++) {
      Div(slope, slope, norm, held);
      Done();
    }
    Mul(slope, slope, factor, held);
    Done();
  }
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR grad, GM_ADDR query, GM_ADDR table, GM_ADDR ids, GM_ADDR group, GM_ADDR grad_query,
                           GM_ADDR grad_table, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  SampledLogitsBackward<Tiling> kernel(pipe, grad, query, table, ids, group, grad_query, grad_table, workspace, t);
  kernel.Process();
}
