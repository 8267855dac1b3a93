// y = norm(x) * weight + bias, times u where there is a gate. Blocks share the rows.
template <class T, bool GATED, class Tiling>
__aicore__ inline void NormForward(GM_ADDR x, GM_ADDR u, GM_ADDR weight, GM_ADDR bias, GM_ADDR y, const Tiling& t) {
  TPipe pipe;
  NormRows<T, Tiling> norm;
  norm.Init(pipe, t);
  GlobalTensor<T> source, gate, target;
  source.SetGlobalBuffer((__gm__ T*)x, t.rows * t.features);
  if constexpr (GATED) gate.SetGlobalBuffer((__gm__ T*)u, t.rows * t.features);
  target.SetGlobalBuffer((__gm__ T*)y, t.rows * t.features);
  Share mine = ShareOf(t.rows, GetBlockIdx(), GetBlockNum());
  for (int64_t row = mine.begin, rows; row < mine.end; row += rows) {
    rows = Least(t.tile, mine.end - row);
    norm.Measure(source, row, rows);
    for (int64_t column = 0; column < t.features; column += t.width) {
      Tile tile = norm.Part(row, rows, column);
      LocalTensor<float> made = norm.Normalized(source, tile);
      if (t.weighted) Apply<Sum::MUL, Along::COLUMNS>(made, norm.Column(0, weight, tile), tile);
      if (t.biased) Apply<Sum::ADD, Along::COLUMNS>(made, norm.Column(1, bias, tile), tile);
      if constexpr (GATED) {
        norm.passage.Load(norm.Other(), gate, tile, t.features);
        Mul(made, made, norm.Other(), tile.Numbers());
        Done();
      }
      norm.passage.Store(target, made, tile, t.features);
    }
  }
}
