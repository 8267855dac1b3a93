// grad * s * (1 + x * (1 - s)), s = 1 / (1 + exp(-x)), in the parts that are activated, grad in the others.
template <class T, class Tiling> class SiluSplitBackward {
 public:
  __aicore__ inline SiluSplitBackward(TPipe& pipe, GM_ADDR u, GM_ADDR v, GM_ADDR q, GM_ADDR k, GM_ADDR x, GM_ADDR y, const Tiling& tiling)
      : t(tiling) {
    int64_t wide = t.tile * RoundUp(t.width, 16);
    passage.Init(pipe, wide * sizeof(T));
    pipe.InitBuffer(grads, wide * sizeof(float));
    pipe.InitBuffer(values, wide * sizeof(float));
    pipe.InitBuffer(sigmoids, wide * sizeof(float));
    pipe.InitBuffer(scratch, wide * sizeof(float));
    source.SetGlobalBuffer((__gm__ T*)x, t.rows * t.features);
    target.SetGlobalBuffer((__gm__ T*)y, t.rows * t.features);
    const GM_ADDR from[PARTS] = {u, v, q, k};
    const int64_t widths[PARTS] = {t.u_width, t.v_width, t.q_width, t.k_width};
    for (int64_t part = 0; part < PARTS; part++) given[part].SetGlobalBuffer((__gm__ T*)from[part], t.rows * widths[part]);
  }
  __aicore__ inline void operator()(int64_t part, int64_t width, const Tile& there, const Tile& here) {
    LocalTensor<float> grad = grads.template Get<float>();
    passage.Load(grad, given[part], there, width);
    if (t.activated >> part & 1) {
      LocalTensor<float> x = values.template Get<float>();
      passage.Load(x, source, here, t.features);
      Derivative(x, here.Numbers());
      Mul(grad, grad, x, here.Numbers());
      Done();
    }
    passage.Store(target, grad, here, t.features);
  }

 private:
  const Tiling& t;
  Passage<T> passage;
  GlobalTensor<T> source, target, given[PARTS];
  TBuf<TPosition::VECCALC> grads, values, sigmoids, scratch;
  __aicore__ inline void Derivative(const LocalTensor<float>& x, int64_t n) {
    LocalTensor<float> s = sigmoids.template Get<float>(), z = scratch.template Get<float>();
    Muls(s, x, -1.0f, n);
    Duplicate(z, 1.0f, n);
    Done();
    Exp(s, s, n);
    Done();
    Adds(s, s, 1.0f, n);
    Done();
    Div(s, z, s, n);
    Done();
    Sub(z, z, s, n);
    Done();
    Mul(x, x, z, n);
    Done();
    Adds(x, x, 1.0f, n);
    Done();
    Mul(x, x, s, n);
    Done();
  }
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR u, GM_ADDR v, GM_ADDR q, GM_ADDR k, GM_ADDR x, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  SiluSplitBackward<T, Tiling> kernel(pipe, u, v, q, k, x, y, t);
  ForParts<T>(t, kernel);
}
