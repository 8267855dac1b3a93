// The gradients of x, of the gate u, and of weight and bias, from that of y = (n * weight + bias) * u, n = norm(x).
//
//   h = grad * u (grad without a gate),  k = h * weight
//   grad_u = grad * (n * weight + bias)      grad_x = (k - n * mean(k * n) - mean(k) if centered) / deviation
//   grad_weight = sum over rows of h * n     grad_bias = sum over rows of h
//
// Sums over rows: pairwise within a tile, a block's tiles one after the other, and, when all blocks have met, the blocks in
// order. The order depends on sizes alone. A block's sums stay in the unified buffer where a row is one part, and in its
// slot of the workspace where it is several.
template <class T, bool GATED, class Tiling> class NormBackward {
 public:
  __aicore__ inline NormBackward(TPipe& pipe, GM_ADDR grad, GM_ADDR x, GM_ADDR u, GM_ADDR weight, GM_ADDR bias, GM_ADDR grad_x,
                                 GM_ADDR grad_u, GM_ADDR workspace, const Tiling& tiling)
      : t(tiling), weights(weight), biases(bias) {
    norm.Init(pipe, t);
    int64_t all = t.rows * t.features, wide = t.tile * RoundUp(t.width, 16);
    gradient.SetGlobalBuffer((__gm__ T*)grad, all);
    source.SetGlobalBuffer((__gm__ T*)x, all);
    to_x.SetGlobalBuffer((__gm__ T*)grad_x, all);
    if constexpr (GATED) {
      gate.SetGlobalBuffer((__gm__ T*)u, all);
      to_u.SetGlobalBuffer((__gm__ T*)grad_u, all);
    }
    slots.SetGlobalBuffer((__gm__ float*)workspace, GetBlockNum() * Kinds() * t.slot);
    pipe.InitBuffer(inner, wide * sizeof(float));
    pipe.InitBuffer(scratch, wide * sizeof(float));
    for (int k = 0; k < 2; k++) {
      pipe.InitBuffer(sums[k], RoundUp(t.width, 16) * sizeof(float));
      Duplicate(sums[k].template Get<float>(), 0.0f, RoundUp(t.width, 16));
    }
    Done();
  }
  __aicore__ inline void Process(GM_ADDR grad_weight, GM_ADDR grad_bias) {
    Share mine = ShareOf(t.rows, GetBlockIdx(), GetBlockNum());
    for (int64_t row = mine.begin, rows; row < mine.end; row += rows) {
      rows = Least(t.tile, mine.end - row);
      norm.Measure(source, row, rows);
      norm.Clear(0);
      norm.Clear(1);
      if (t.parts > 1) Twice(row, rows, row == mine.begin);
      else Once(row, rows);
    }
    if (!Kinds()) return;
    if (t.parts == 1 || mine.begin == mine.end) KeepSums();
    SyncAll();
    if (t.weighted) Together(0, grad_weight);
    if (t.biased) Together(1, grad_bias);
  }

 private:
  const Tiling& t;
  GM_ADDR weights, biases;
  NormRows<T, Tiling> norm;
  GlobalTensor<T> gradient, source, gate, to_x, to_u;
  GlobalTensor<float> slots;
  TBuf<TPosition::VECCALC> inner, scratch, sums[2];
  __aicore__ inline int64_t Kinds() const { return t.weighted + t.biased; }
  __aicore__ inline GlobalTensor<float> Slot(int64_t block, int kind) { return slots[(block * Kinds() + (kind && t.weighted)) * t.slot]; }

  __aicore__ inline void Once(int64_t row, int64_t rows) {
    Tile tile = norm.Part(row, rows, 0);
    LocalTensor<float> n = Gradients<true>(tile, false);
    AddMeans(n, tile);
    norm.Spread(0, 2, rows);
    norm.Spread(1, 3, rows);
    Finish(n, tile);
  }
  // Means over a whole row come first, so its parts are read again.
  __aicore__ inline void Twice(int64_t row, int64_t rows, bool begins) {
    for (int64_t column = 0; column < t.features; column += t.width) {
      Tile tile = norm.Part(row, rows, column);
      AddMeans(Gradients<false>(tile, begins), tile);
    }
    norm.Spread(0, 2, rows);
    norm.Spread(1, 3, rows);
    for (int64_t column = 0; column < t.features; column += t.width) {
      Tile tile = norm.Part(row, rows, column);
      Finish(Gradients<true>(tile, begins), tile);
    }
  }
  // n, with k in `inner`; writes grad_u and adds to the sums over rows where `whole`.
  template <bool whole> __aicore__ inline LocalTensor<float> Gradients(const Tile& tile, bool begins) {
    LocalTensor<float> n = norm.Normalized(source, tile), h = inner.Get<float>(), z = scratch.Get<float>();
    norm.passage.Load(h, gradient, tile, t.features);
    if constexpr (GATED) {
      if constexpr (whole) {
        Muls(z, n, 1.0f, tile.Numbers());
        Done();
        if (t.weighted) Apply<Sum::MUL, Along::COLUMNS>(z, norm.Column(0, weights, tile), tile);
        if (t.biased) Apply<Sum::ADD, Along::COLUMNS>(z, norm.Column(1, biases, tile), tile);
        Mul(z, z, h, tile.Numbers());
        Done();
        norm.passage.Store(to_u, z, tile, t.features);
      }
      norm.passage.Load(norm.Other(), gate, tile, t.features);
      Mul(h, h, norm.Other(), tile.Numbers());
      Done();
    }
    if constexpr (whole) {
      if (t.weighted) {
        Mul(z, h, n, tile.Numbers());
        Done();
        AddRows(0, z, tile, begins);
      }
      if (t.biased) {
        Muls(z, h, 1.0f, tile.Numbers());
        Done();
        AddRows(1, z, tile, begins);
      }
    }
    if (t.weighted) Apply<Sum::MUL, Along::COLUMNS>(h, norm.Column(0, weights, tile), tile);
    return n;
  }
  __aicore__ inline void AddMeans(const LocalTensor<float>& n, const Tile& tile) {
    LocalTensor<float> k = inner.Get<float>(), z = scratch.Get<float>();
    if (t.centered) norm.AddSums(0, k, tile);
    Mul(z, k, n, tile.Numbers());
    Done();
    norm.AddSums(1, z, tile);
  }
  __aicore__ inline void Finish(const LocalTensor<float>& n, const Tile& tile) {
    LocalTensor<float> k = inner.Get<float>();
    Apply<Sum::MUL, Along::ROWS>(n, norm.Factor(3), tile);
    Sub(k, k, n, tile.Numbers());
    Done();
    if (t.centered) Apply<Sum::SUB, Along::ROWS>(k, norm.Factor(2), tile);
    Apply<Sum::MUL, Along::ROWS>(k, norm.Factor(1), tile);
    norm.passage.Store(to_x, k, tile, t.features);
  }
  __aicore__ inline void AddRows(int kind, const LocalTensor<float>& z, const Tile& tile, bool begins) {
    FoldRows(z, tile);
    if (t.parts == 1) {
      LocalTensor<float> sum = sums[kind].Get<float>();
      Add(sum, sum, z, tile.n);
      Done();
      return;
    }
    GlobalTensor<float> slot = Slot(GetBlockIdx(), kind)[tile.column];
    if (!begins) {
      Order<HardEvent::MTE3_MTE2>();
      norm.passage.AddTo(z, slot, tile.n);
    }
    norm.passage.Keep(slot, z, tile.n);
  }
  // A block without rows keeps zeros.
  __aicore__ inline void KeepSums() {
    for (int64_t column = 0; column < t.features; column += t.width) {
      int64_t n = Least(t.width, t.features - column);
      if (t.weighted) norm.passage.Keep(Slot(GetBlockIdx(), 0)[column], sums[0].Get<float>(), n);
      if (t.biased) norm.passage.Keep(Slot(GetBlockIdx(), 1)[column], sums[1].Get<float>(), n);
    }
  }
  // Blocks take columns in turn, and add the slots of all blocks in order.
  __aicore__ inline void Together(int kind, GM_ADDR to) {
    GlobalTensor<T> target;
    target.SetGlobalBuffer((__gm__ T*)to, t.features);
    LocalTensor<float> sum = scratch.Get<float>();
    int64_t each = Least(t.width, 256);
    for (int64_t column = GetBlockIdx() * each; column < t.features; column += GetBlockNum() * each) {
      int64_t n = Least(each, t.features - column);
      Tile tile = TileOf<T>(0, 1, column, n);
      Duplicate(sum, 0.0f, tile.stride);
      Done();
      for (int64_t block = 0; block < GetBlockNum(); block++) norm.passage.AddTo(sum, Slot(block, kind)[column], n);
      norm.passage.Store(target, sum, tile, t.features);
    }
  }
};
