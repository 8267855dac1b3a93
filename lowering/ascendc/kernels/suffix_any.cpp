// y[b, n] = is a place at or after n true? Each row goes from its end to its beginning: behind the last true place
// zeros, up to it ones. Everything but that place is vector work, in float32, which holds every place of a tile.
template <class Tiling> class SuffixAny {
 public:
  __aicore__ inline SuffixAny(TPipe& pipe, GM_ADDR mask, GM_ADDR y, const Tiling& tiling) : t(tiling) {
    truths.Init(pipe, mask, t.rows * t.length, t.tile);
    target.SetGlobalBuffer((__gm__ uint8_t*)y, t.rows * t.length);
    pipe.InitBuffer(out, 2, t.tile);
    pipe.InitBuffer(numbers, t.tile * sizeof(float));
    pipe.InitBuffer(scratch, t.tile * sizeof(float));
    pipe.InitBuffer(result, 32);
    CreateVecIndex(numbers.Get<float>(), 1.0f, t.tile);  // the places of a tile, from 1
    PipeBarrier<PIPE_V>();
  }
  __aicore__ inline void Process() {
    Share mine = ShareOf(t.rows, GetBlockIdx(), GetBlockNum());
    for (int64_t row = mine.begin; row < mine.end; row++) {
      bool any = false;
      for (int64_t tile = (t.length + t.tile - 1) / t.tile - 1; tile >= 0; tile--) {
        int64_t first = tile * t.tile, n = Least(t.tile, t.length - first);
        float last = any ? (float)n : Last(row * t.length + first, n);
        any = any || last > 0;
        Write(row * t.length + first, n, last);
      }
    }
  }

 private:
  const Tiling& t;
  Truths truths;
  GlobalTensor<uint8_t> target;
  TQue<TPosition::VECOUT, 1> out;
  TBuf<TPosition::VECCALC> numbers, scratch, result;

  // The last true place of a tile, from 1; 0 where none is true.
  __aicore__ inline float Last(int64_t at, int64_t n) {
    LocalTensor<float> x = truths(at, n);
    Mul(x, x, numbers.Get<float>(), n);
    PipeBarrier<PIPE_V>();
    ReduceMax(result.Get<float>(), x, scratch.Get<float>(), n);
    Order<HardEvent::V_S>();
    float last = result.Get<float>().GetValue(0);
    Order<HardEvent::S_V>();
    return last;
  }
  __aicore__ inline void Write(int64_t at, int64_t n, float last) {
    LocalTensor<half> h = truths.halves.Get<half>();
    LocalTensor<float> x = truths.floats.Get<float>();
    Muls(x, numbers.Get<float>(), -1.0f, n);
    PipeBarrier<PIPE_V>();
    Adds(x, x, last + 1.0f, n);  // 1 or more up to the last true place
    PipeBarrier<PIPE_V>();
    Maxs(x, x, 0.0f, n);
    PipeBarrier<PIPE_V>();
    Mins(x, x, 1.0f, n);
    PipeBarrier<PIPE_V>();
    Cast(h, x, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    LocalTensor<uint8_t> local = out.AllocTensor<uint8_t>();
    Cast(local, h, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    out.EnQue(local);
    local = out.DeQue<uint8_t>();
    CopyOut(target[at], local, 1, n, 0);
    out.FreeTensor(local);
  }
};

template <class Tiling> __aicore__ inline void Run(GM_ADDR mask, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  SuffixAny<Tiling> kernel(pipe, mask, y, t);
  kernel.Process();
}
