// y = x / (1 + exp(-x)) in the parts that are activated, x in the others.
template <class T, class Tiling> class SiluSplit {
 public:
  __aicore__ inline SiluSplit(TPipe& pipe, GM_ADDR x, GM_ADDR u, GM_ADDR v, GM_ADDR q, GM_ADDR k, const Tiling& tiling) : t(tiling) {
    int64_t wide = t.tile * RoundUp(t.width, 16);
    passage.Init(pipe, wide * sizeof(T));
    pipe.InitBuffer(values, wide * sizeof(float));
    pipe.InitBuffer(scratch, wide * sizeof(float));
    source.SetGlobalBuffer((__gm__ T*)x, t.rows * t.features);
    const GM_ADDR to[PARTS] = {u, v, q, k};
    const int64_t widths[PARTS] = {t.u_width, t.v_width, t.q_width, t.k_width};
    for (int64_t part = 0; part < PARTS; part++) targets[part].SetGlobalBuffer((__gm__ T*)to[part], t.rows * widths[part]);
  }
  __aicore__ inline void operator()(int64_t part, int64_t width, const Tile& there, const Tile& here) {
    LocalTensor<float> x = values.template Get<float>(), z = scratch.template Get<float>();
    passage.Load(x, source, here, t.features);
    if (t.activated >> part & 1) {
      int64_t n = here.Numbers();
      Muls(z, x, -1.0f, n);
      Done();
      Exp(z, z, n);
      Done();
      Adds(z, z, 1.0f, n);
      Done();
      Div(x, x, z, n);
      Done();
    }
    passage.Store(targets[part], x, there, width);
  }

 private:
  const Tiling& t;
  Passage<T> passage;
  GlobalTensor<T> source, targets[PARTS];
  TBuf<TPosition::VECCALC> values, scratch;
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR x, GM_ADDR u, GM_ADDR v, GM_ADDR q, GM_ADDR k, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  SiluSplit<T, Tiling> kernel(pipe, x, u, v, q, k, t);
  ForParts<T>(t, kernel);
}
