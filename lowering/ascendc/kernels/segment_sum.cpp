// y[b] = the sum of the rows of sequence b: halves and floats in float32, whole numbers in 64 bits.
//
// Blocks share the rows, not the sequences: one long sequence among short ones keeps no block waiting. A block writes the
// sums of the sequences that lie in its share. Of a sequence that goes on behind it the block keeps its part (`tails`),
// of one that began before it, too (`heads`); when all have met, the block in which the sequence begins adds them in order.
// Within a tile rows are added pairwise, tiles one after the other. The order depends on nothing but sizes and offsets.
template <class T> struct Wide { using type = int64_t; };
template <> struct Wide<float> { using type = float; };
template <> struct Wide<half> { using type = float; };
template <> struct Wide<bfloat16_t> { using type = float; };
template <class T> struct Summed { using type = T; };
template <> struct Summed<uint8_t> { using type = int64_t; };
template <> struct Summed<int32_t> { using type = int64_t; };

template <class T, class Tiling> class SegmentSum {
 public:
  using A = typename Wide<T>::type;
  using Y = typename Summed<T>::type;
  static constexpr bool WHOLE = sizeof(A) == 8;

  __aicore__ inline SegmentSum(TPipe& pipe, GM_ADDR values, GM_ADDR numbers, GM_ADDR y, GM_ADDR workspace, const Tiling& tiling)
      : t(tiling), me(GetBlockIdx()), blocks(GetBlockNum()) {
    source.SetGlobalBuffer((__gm__ T*)values, t.rows * t.features);
    target.SetGlobalBuffer((__gm__ Y*)y, t.sequences * t.features);
    heads.SetGlobalBuffer((__gm__ A*)workspace, 2 * blocks * t.slot);
    tails = heads[blocks * t.slot];
    offsets.Init(pipe, numbers, t.sequences + 1);
    pipe.InitBuffer(in, 2, t.tile * t.width * sizeof(T) < t.width * sizeof(A) ? t.width * sizeof(A) : t.tile * t.width * sizeof(T));
    pipe.InitBuffer(out, 2, t.width * sizeof(A));
    pipe.InitBuffer(sum, t.width * sizeof(A));
    if constexpr (!WHOLE && sizeof(T) == 2) pipe.InitBuffer(widened, t.tile * t.width * sizeof(float));
    total = Least(offsets(t.sequences), t.rows);
    mine = ShareOf(total, me, blocks);
    first = me == 0 ? 0 : offsets.LowerBound(mine.begin);
    last = me == blocks - 1 ? t.sequences : offsets.LowerBound(mine.end);
  }
  __aicore__ inline void Process() {
    for (int64_t column = 0; column < t.features; column += t.width) Alone(column, Least(t.width, t.features - column));
    if (blocks == 1) return;
    SyncAll();
    for (int64_t column = 0; column < t.features; column += t.width) Together(column, Least(t.width, t.features - column));
  }

 private:
  const Tiling& t;
  int64_t me, blocks, total = 0, first = 0, last = 0;  // sequences [first, last) begin in this share
  Share mine;
  Numbers<int64_t> offsets;
  GlobalTensor<T> source;
  GlobalTensor<Y> target;
  GlobalTensor<A> heads, tails;
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;
  TBuf<TPosition::VECCALC> sum, widened;

  __aicore__ inline void Alone(int64_t column, int64_t n) {
    int64_t own = Least(mine.end, offsets(first));
    if (me > 0 && own > mine.begin) {
      Sum(mine.begin, own, column, n);
      Keep(heads[me * t.slot + column], n);
    }
    for (int64_t b = first; b < last; b++) {
      int64_t begin = offsets(b), end = offsets(b + 1);
      Sum(begin, Least(end, mine.end), column, n);
      if (end <= mine.end || me == blocks - 1) Write(b, column, n);
      else Keep(tails[me * t.slot + column], n);
    }
  }
  __aicore__ inline void Together(int64_t column, int64_t n) {
    int64_t end = offsets(last);
    if (first == last || end <= mine.end || me == blocks - 1) return;
    Clear(n);
    AddSlot(tails[me * t.slot + column], n);
    for (int64_t other = me + 1; other < blocks && ShareOf(total, other, blocks).begin < end; other++)
      AddSlot(heads[other * t.slot + column], n);
    Write(last - 1, column, n);
  }
  __aicore__ inline void Clear(int64_t n) {
    LocalTensor<A> to = sum.Get<A>();
    if constexpr (WHOLE) {
      for (int64_t i = 0; i < n; i++) to.SetValue(i, 0);
    } else {
      Duplicate(to, 0.0f, n);
      PipeBarrier<PIPE_V>();
    }
  }
  __aicore__ inline void Sum(int64_t begin, int64_t end, int64_t column, int64_t n) {
    Clear(n);
    for (int64_t row = begin, rows; row < end; row += rows) {
      rows = Least(t.tile, end - row);
      LocalTensor<T> local = in.AllocTensor<T>();
      CopyIn(local, source[row * t.features + column], rows, n * sizeof(T), (t.features - n) * sizeof(T));
      in.EnQue(local);
      local = in.DeQue<T>();
      AddRows(local, rows, RoundUp(n, 32 / sizeof(T)), n);
      in.FreeTensor(local);
    }
  }
  __aicore__ inline void AddRows(LocalTensor<T> local, int64_t rows, int64_t stride, int64_t n) {
    if constexpr (WHOLE) {
      Accumulate(local, rows, stride, n);
    } else if constexpr (sizeof(T) == 4) {
      Fold(local, rows, stride, n);
    } else {
      LocalTensor<float> wide = widened.Get<float>();
      Cast(wide, local, RoundMode::CAST_NONE, rows * stride);
      PipeBarrier<PIPE_V>();
      Fold(wide, rows, stride, n);
    }
  }
  // The second half of the rows onto the first, until one is left.
  __aicore__ inline void Fold(LocalTensor<float> x, int64_t rows, int64_t stride, int64_t n) {
    for (int64_t half_of_them; rows > 1; rows -= half_of_them) {
      half_of_them = rows / 2;
      Add(x, x, x[(rows - half_of_them) * stride], half_of_them * stride);
      PipeBarrier<PIPE_V>();
    }
    LocalTensor<float> to = sum.Get<float>();
    Add(to, to, x, n);
    PipeBarrier<PIPE_V>();
  }
  // 64-bit integers are the scalar unit's. The queue orders V with the copies; these flags order S with V.
  template <class N> __aicore__ inline void Accumulate(LocalTensor<N> x, int64_t rows, int64_t stride, int64_t n) {
    LocalTensor<A> to = sum.Get<A>();
    Order<HardEvent::V_S>();
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < n; i++) to.SetValue(i, to.GetValue(i) + (A)x.GetValue(row * stride + i));
    Order<HardEvent::S_V>();
  }
  __aicore__ inline void AddSlot(GlobalTensor<A> slot, int64_t n) {
    LocalTensor<A> local = in.AllocTensor<A>();
    CopyIn(local, slot, 1, n * sizeof(A), 0);
    in.EnQue(local);
    local = in.DeQue<A>();
    if constexpr (WHOLE) Accumulate(local, 1, n, n);
    else Fold(local, 1, n, n);
    in.FreeTensor(local);
  }
  __aicore__ inline void Keep(GlobalTensor<A> slot, int64_t n) { Emit<A>(slot, n); }
  __aicore__ inline void Write(int64_t b, int64_t column, int64_t n) { Emit<Y>(target[b * t.features + column], n); }
  template <class D> __aicore__ inline void Emit(GlobalTensor<D> to, int64_t n) {
    LocalTensor<A> from = sum.Get<A>();
    LocalTensor<D> local = out.AllocTensor<D>();
    if constexpr (WHOLE) {
      Order<HardEvent::V_S>();
      for (int64_t i = 0; i < n; i++) local.SetValue(i, (D)from.GetValue(i));
      Order<HardEvent::S_V>();
    } else if constexpr (sizeof(D) == 4) {
      Adds(local, from, 0.0f, n);
    } else {
      Cast(local, from, RoundMode::CAST_RINT, n);
    }
    PipeBarrier<PIPE_V>();
    out.EnQue(local);
    local = out.DeQue<D>();
    CopyOut(to, local, 1, n * sizeof(D), 0);
    out.FreeTensor(local);
  }
};

template <class Tiling> __aicore__ inline void Run(GM_ADDR values, GM_ADDR offsets, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  SegmentSum<T, Tiling> kernel(pipe, values, offsets, y, workspace, t);
  kernel.Process();
}
