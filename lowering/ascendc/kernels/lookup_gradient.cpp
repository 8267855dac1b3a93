// y[r] = the sum of grad[p] over the places p whose id is r, in the order of p, in float32.
//
// Groups of `group` rows belong to the blocks in turn, and only its owner adds to a row: nothing that two blocks do has
// an order to lose. Every block reads all ids and fetches the rows of grad whose ids it owns, `tile` at a time. They are
// added in global memory by the copy unit, one after the other: two that go to one row are separated by a barrier.
// Halves are added into a float32 copy of the table in the workspace and rounded once, at the end.
constexpr int64_t MOST = 32;
template <class T, class I, class Tiling> class LookupGradient {
 public:
  static constexpr bool FLOAT = sizeof(T) == 4;
  __aicore__ inline LookupGradient(TPipe& pipe, GM_ADDR grad, GM_ADDR numbers, GM_ADDR y, GM_ADDR workspace, const Tiling& tiling)
      : t(tiling), room(t.tile * RoundUp(t.width, 16)) {
    source.SetGlobalBuffer((__gm__ T*)grad, t.lookups * t.features);
    target.SetGlobalBuffer((__gm__ T*)y, t.rows * t.features);
    sums.SetGlobalBuffer((__gm__ float*)(FLOAT ? y : workspace), t.rows * t.features);
    ids.Init(pipe, numbers, t.lookups);
    zeros.Init(pipe, nullptr, 1, t.fill);
    if constexpr (FLOAT) {
      pipe.InitBuffer(through, 2, room * sizeof(float));
    } else {
      pipe.InitBuffer(in, 2, room * sizeof(float));  // of halves, and of sums at the end
      pipe.InitBuffer(out, 2, room * sizeof(float));
    }
  }
  __aicore__ inline void Process() {
    ForMine<true>();
    PipeBarrier<PIPE_MTE3>();
    for (int64_t column = 0; column < t.features; column += t.width) Sum(column, Least(t.width, t.features - column));
    if constexpr (!FLOAT) {
      Order<HardEvent::MTE3_MTE2>();
      ForMine<false>();
    }
  }

 private:
  const Tiling& t;
  int64_t room, held = 0, rows[MOST];
  GlobalTensor<T> source, target;
  GlobalTensor<float> sums;
  Numbers<I> ids;
  Fill zeros;
  TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> through;
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;
  LocalTensor<T> fetched;

  // Clear, or round, the rows of this block's groups.
  template <bool clear> __aicore__ inline void ForMine() {
    for (int64_t row = GetBlockIdx() * t.group; row < t.rows; row += GetBlockNum() * t.group) {
      int64_t end = Least(row + t.group, t.rows) * t.features, most = clear ? t.fill / (int64_t)sizeof(float) : room;
      for (int64_t at = row * t.features; at < end; at += most) {
        if constexpr (clear) CopyOut(sums[at], zeros.Whole().template ReinterpretCast<float>(), 1, Least(most, end - at) * sizeof(float), 0);
        else Round(at, Least(most, end - at));
      }
    }
  }
  __aicore__ inline void Sum(int64_t column, int64_t n) {
    int64_t blocks = GetBlockNum(), me = GetBlockIdx();
    for (int64_t place = 0; place < t.lookups; place++) {
      int64_t id = ids(place);
      if (id < 0 || id >= t.rows || id == t.padding || id / t.group % blocks != me) continue;
      if (!held) {
        if constexpr (FLOAT) fetched = through.AllocTensor<T>();
        else fetched = in.AllocTensor<T>();
      }
      CopyIn(fetched[held * RoundUp(n, 16)], source[place * t.features + column], 1, n * sizeof(T), 0);
      rows[held++] = id;
      if (held == t.tile) Flush(column, n);
    }
    if (held) Flush(column, n);
  }
  __aicore__ inline void Flush(int64_t column, int64_t n) {
    LocalTensor<float> wide;
    if constexpr (FLOAT) {
      through.EnQue(fetched);
      wide = through.DeQue<float>();
    } else {
      in.EnQue(fetched);
      fetched = in.DeQue<T>();
      wide = out.AllocTensor<float>();
      Cast(wide, fetched, RoundMode::CAST_NONE, held * RoundUp(n, 16));
      PipeBarrier<PIPE_V>();
      in.FreeTensor(fetched);
      out.EnQue(wide);
      wide = out.DeQue<float>();
    }
    Add(wide, column, n);
    if constexpr (FLOAT) through.FreeTensor(wide);
    else out.FreeTensor(wide);
    held = 0;
  }
  __aicore__ inline void Add(LocalTensor<float>& wide, int64_t column, int64_t n) {
    SetAtomicAdd<float>();
    for (int64_t i = 0, apart = 0; i < held; i++) {
      bool again = false;
      for (int64_t j = apart; j < i; j++) again = again || rows[j] == rows[i];
      if (again) {
        PipeBarrier<PIPE_MTE3>();
        apart = i;
      }
      CopyOut(sums[rows[i] * t.features + column], wide[i * RoundUp(n, 16)], 1, n * sizeof(float), 0);
    }
    SetAtomicNone();
    PipeBarrier<PIPE_MTE3>();
  }
  __aicore__ inline void Round(int64_t at, int64_t n) {
    LocalTensor<float> wide = in.AllocTensor<float>();
    CopyIn(wide, sums[at], 1, n * sizeof(float), 0);
    in.EnQue(wide);
    wide = in.DeQue<float>();
    LocalTensor<T> local = out.AllocTensor<T>();
    Cast(local, wide, RoundMode::CAST_RINT, n);
    PipeBarrier<PIPE_V>();
    in.FreeTensor(wide);
    out.EnQue(local);
    local = out.DeQue<T>();
    CopyOut(target[at], local, 1, n * sizeof(T), 0);
    out.FreeTensor(local);
  }
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR grad, GM_ADDR ids, GM_ADDR rows, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  LookupGradient<T, I, Tiling> kernel(pipe, grad, ids, y, workspace, t);
  kernel.Process();
}
