// Rows normalised in the unified buffer: x[r] = (x[r] - mean[r]) / sqrt(mean of squares + eps), or without the mean.
//
// A row that is wider than a tile is read again for each of its sums, `width` columns at a time; every other row is read
// once. Means and scales are kept as a block of 8 equal numbers a row, which instructions read with a stride of 0.
template <class T, class Tiling> class NormRows {
 public:
  __aicore__ inline void Init(TPipe& pipe, const Tiling& tiling) {
    t = &tiling;
    int64_t wide = t->tile * RoundUp(t->width, 16), bytes = wide * sizeof(T), least = t->width * sizeof(float);
    passage.Init(pipe, Most(bytes, least));
    pipe.InitBuffer(normed, wide * sizeof(float));
    pipe.InitBuffer(other, wide * sizeof(float));
    pipe.InitBuffer(lanes, (t->tile * LANES + REDUCED) * sizeof(float));
    for (int k = 0; k < 2; k++) pipe.InitBuffer(columns[k], RoundUp(t->width, 16) * sizeof(float));
    int64_t rows = RoundUp(t->tile, 8);
    pipe.InitBuffer(numbers, 3 * rows * sizeof(float));
    pipe.InitBuffer(factors, 4 * rows * 8 * sizeof(float));
  }
  __aicore__ inline Tile Part(int64_t row, int64_t rows, int64_t column) const {
    return TileOf<T>(row, rows, column, Least(t->width, t->features - column));
  }
  // Weight 0 or bias 1: the columns of a tile.
  __aicore__ inline LocalTensor<float> Column(int k, GM_ADDR from, const Tile& tile) {
    LocalTensor<float> to = columns[k].template Get<float>();
    if (t->parts > 1 || !held[k]) {
      GlobalTensor<T> source;
      source.SetGlobalBuffer((__gm__ T*)from, t->features);
      passage.Load(to, source, TileOf<T>(0, 1, tile.column, tile.n), t->features);
      held[k] = true;
    }
    return to;
  }
  // The means and scales of rows. Where a row is one part, it is left in the buffer, centered.
  __aicore__ inline void Measure(const GlobalTensor<T>& source, int64_t row, int64_t rows) {
    LocalTensor<float> x = normed.template Get<float>(), square = other.template Get<float>();
    if (t->centered) {
      Clear(0);
      for (int64_t column = 0; column < t->features; column += t->width) {
        Tile tile = Part(row, rows, column);
        passage.Load(x, source, tile, t->features);
        AddSums(0, x, tile);
      }
      Spread(0, 0, rows);
    }
    Clear(0);
    for (int64_t column = 0; column < t->features; column += t->width) {
      Tile tile = Part(row, rows, column);
      if (!t->centered || t->parts > 1) passage.Load(x, source, tile, t->features);
      if (t->centered) Apply<Sum::SUB, Along::ROWS>(x, Factor(0), tile);
      Mul(square, x, x, tile.Numbers());
      Done();
      AddSums(0, square, tile);
    }
    LocalTensor<float> variance = Number(0), one = Number(2);
    Mean(0, rows);
    Adds(variance, variance, Eps(), Padded(rows));
    Duplicate(one, 1.0f, Padded(rows));
    Done();
    Sqrt(variance, variance, Padded(rows));
    Done();
    Div(variance, one, variance, Padded(rows));
    Done();
    Brcb(Factor(1), variance, Padded(rows) / 8, {1, 8});
    Done();
  }
  // A part of the rows that were measured, normalised.
  __aicore__ inline LocalTensor<float> Normalized(const GlobalTensor<T>& source, const Tile& tile) {
    LocalTensor<float> x = normed.template Get<float>();
    if (t->parts > 1) {
      passage.Load(x, source, tile, t->features);
      if (t->centered) Apply<Sum::SUB, Along::ROWS>(x, Factor(0), tile);
    }
    Apply<Sum::MUL, Along::ROWS>(x, Factor(1), tile);
    return x;
  }
  // Sums k of rows begin at 0; they grow; they become means, in factor `to`.
  __aicore__ inline void Clear(int k) {
    Duplicate(Number(k), 0.0f, RoundUp(t->tile, 8));
    Done();
  }
  __aicore__ inline void AddSums(int k, const LocalTensor<float>& x, const Tile& tile) {
    AddRowSums(Number(k), x, lanes.template Get<float>(), Number(2), tile);
  }
  __aicore__ inline void Spread(int k, int to, int64_t rows) {
    Mean(k, rows);
    Brcb(Factor(to), Number(k), Padded(rows) / 8, {1, 8});
    Done();
  }
  __aicore__ inline LocalTensor<float> Factor(int k) { return factors.template Get<float>()[k * RoundUp(t->tile, 8) * 8]; }
  __aicore__ inline LocalTensor<float> Other() { return other.template Get<float>(); }

  Passage<T> passage;

 private:
  const Tiling* t = nullptr;
  TBuf<TPosition::VECCALC> normed, other, lanes, columns[2], numbers, factors;
  bool held[2] = {false, false};
  __aicore__ inline LocalTensor<float> Number(int k) { return numbers.template Get<float>()[k * RoundUp(t->tile, 8)]; }
  __aicore__ inline static int64_t Padded(int64_t rows) { return RoundUp(rows, 8); }
  // Divided, not times 1 / features: where a row's numbers are nearly equal its mean must be exact to the last bit.
  __aicore__ inline void Mean(int k, int64_t rows) {
    Duplicate(Number(2), (float)t->features, Padded(rows));
    Done();
    Div(Number(k), Number(k), Number(2), Padded(rows));
    Done();
  }
  // The tiling's fields are whole numbers: eps is the bits of a float.
  __aicore__ inline float Eps() const {
    union { int32_t bits; float value; } both;
    both.bits = (int32_t)t->eps;
    return both.value;
  }
};
