// y[r] = the sum of grad[p] over the places p whose id is r, in the order of p, in float32.
//
// Every block reads all ids and fetches the rows of grad whose ids it owns, `tile` at a time.
constexpr int64_t MOST = 32;
template <class T, class I, class Tiling> class LookupGradient {
 public:
  static constexpr bool FLOAT = sizeof(T) == 4;
  __aicore__ inline LookupGradient(TPipe& pipe, GM_ADDR grad, GM_ADDR numbers, GM_ADDR y, GM_ADDR workspace, const Tiling& tiling)
      : t(tiling), room(t.tile * RoundUp(t.width, 16)) {
    source.SetGlobalBuffer((__gm__ T*)grad, t.lookups * t.features);
    ids.Init(pipe, numbers, t.lookups);
    sums.Init(pipe, y, workspace, t);
    if constexpr (FLOAT) {
      pipe.InitBuffer(through, 2, room * sizeof(float));
    } else {
      pipe.InitBuffer(in, 2, room * sizeof(T));
      pipe.InitBuffer(out, 2, room * sizeof(float));
    }
  }
  __aicore__ inline void Process() {
    sums.Clear();
    for (int64_t column = 0; column < t.features; column += t.width) Sum(column, Least(t.width, t.features - column));
    sums.Finish();
  }

 private:
  const Tiling& t;
  int64_t room, held = 0, rows[MOST];
  GlobalTensor<T> source;
  Numbers<I> ids;
  OwnedRows<T, Tiling> sums;
  TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> through;
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;
  LocalTensor<T> fetched;

  __aicore__ inline void Sum(int64_t column, int64_t n) {
    for (int64_t place = 0; place < t.lookups; place++) {
      int64_t id = ids(place);
      if (id < 0 || id >= t.rows || id == t.padding || !sums.Mine(id)) continue;
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
    sums.Add(wide, rows, held, column, n, RoundUp(n, 16));
    if constexpr (FLOAT) through.FreeTensor(wide);
    else out.FreeTensor(wide);
    held = 0;
  }
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR grad, GM_ADDR ids, GM_ADDR rows, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  LookupGradient<T, I, Tiling> kernel(pipe, grad, ids, y, workspace, t);
  kernel.Process();
}
