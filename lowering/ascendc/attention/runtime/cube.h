// A cube core: scores = Q Kt of tile t, then outputs += P V of tile t - 2, while its vector cores make weights of t - 1.
// A tile is wider than what L0C holds beside the outputs: K passes through s_step keys at a time, P and V c_step.
class Cube {
 public:
  __aicore__ inline Cube(const Operands& o) : o(o) {}
  __aicore__ inline void run() {
    int64_t r = up(o.r, 16), d = up(o.d, 16), dv = up(o.dv, 16);
    pipe.InitBuffer(v1, 2, (uint32_t)(up(o.c_step, 16) * dv * sizeof(VT)));
    pipe.InitBuffer(p1, 2, (uint32_t)(r * up(o.c_step, 16) * sizeof(VT)));
    if (PRODUCT) {
      pipe.InitBuffer(q1, 2, (uint32_t)(r * d * sizeof(QT)));
      pipe.InitBuffer(k1, 2, (uint32_t)(o.s_step * d * sizeof(QT)));
      pipe.InitBuffer(s0, 2, (uint32_t)(r * o.s_step * 4));
    }
    pipe.InitBuffer(o0, 1, (uint32_t)(r * dv * 4));
    product.init(pipe, o.left, o.right);
    group = GetBlockIdx();
    overlap(o, *this);
  }
  __aicore__ inline void scores(const Step& s, int slot) {
    if constexpr (!PRODUCT) return CrossCoreSetFlag<2, PIPE_MTE2>(SCORES);
    if (s.kept && s.phase) {
      order<HardEvent::MTE2_FIX>();  // weights of t - 3 have been read; the flags of a core come from one pipe, in order
      return given(s);
    }
    if (s.opens) {
      LocalTensor<QT> q = q1.AllocTensor<QT>();
      copy_rows(q, o.q[(s.row0 * o.q_heads + head_q(o, s.h)) * o.d], s.rows, (int32_t)o.d, o.q_heads * o.d);
      q1.EnQue(q);
      queries = q1.DeQue<QT>();
    }
    int64_t at = (group * o.s_slots + s.slot) * o.r * o.c;
    for (int32_t x = 0; x < s.columns; x += (int32_t)o.s_step) {
      int32_t some = (int32_t)least(o.s_step, s.columns - x);
      LocalTensor<QT> k = k1.AllocTensor<QT>();
      copy_rows(k, o.k[((s.key0 + x) * o.k_heads + head_k(o, s.h)) * o.d], some, (int32_t)o.d, o.k_heads * o.d);
      k1.EnQue(k);
      k = k1.DeQue<QT>();
      LocalTensor<float> sums = s0.AllocTensor<float>();
      product.add<QT, false>(sums, queries, k, at_least_two(s.rows), some, (int32_t)o.d, (int32_t)o.d_step, true);
      k1.FreeTensor(k);
      s0.EnQue(sums);
      sums = s0.DeQue<float>();
      write_rows<ST>(o.s[at + x], sums, s.rows, some, o.c);
      s0.FreeTensor(sums);
    }
    given(s);
  }
  __aicore__ inline void outputs(const Step& s, int slot) {
    CrossCoreWaitFlag(WEIGHTS);
    if (s.phase < PHASES - 1) return;
    constexpr bool upright = sizeof(VT) == 2;
    int64_t at = (group * DEPTH + slot) * o.r * o.c, h = head_v(o, s.h);
    if (s.begins) sums = o0.AllocTensor<float>();
    for (int32_t x = 0; x < s.columns; x += (int32_t)o.c_step) {
      int32_t some = (int32_t)least(o.c_step, s.columns - x);
      LocalTensor<VT> p = p1.AllocTensor<VT>();
      copy_rows(p, o.p[at + x], s.rows, some, o.c);
      p1.EnQue(p);
      LocalTensor<VT> v = v1.AllocTensor<VT>();
      if constexpr (upright) copy_rows(v, o.v[((s.key0 + x) * o.v_heads + h) * o.dv], some, (int32_t)o.dv, o.v_heads * o.dv);
      else copy_rows(v.ReinterpretCast<float>(), o.vt[(s.key_tile * o.v_heads + h) * o.dv * o.c + x], (int32_t)o.dv, some, o.c);
      v1.EnQue(v);
      p = p1.DeQue<VT>(), v = v1.DeQue<VT>();
      product.add<VT, upright>(sums, p, v, at_least_two(s.rows), (int32_t)o.dv, some, some, s.begins && x == 0);
      p1.FreeTensor(p);
      v1.FreeTensor(v);
    }
    if (!s.ends) return;
    o0.EnQue(sums);
    sums = o0.DeQue<float>();
    write_rows<OT>(o.out[(s.row0 * o.heads + s.h) * o.dv], sums, s.rows, (int32_t)o.dv, o.heads * o.dv);
    o0.FreeTensor(sums);
  }

 private:
  __aicore__ inline void given(const Step& s) {
    if (s.closes) q1.FreeTensor(queries);
    CrossCoreSetFlag<2, PIPE_FIX>(SCORES);
  }
  const Operands& o;
  TPipe pipe;
  Product product;
  TQue<TPosition::A1, 2> q1, p1;
  TQue<TPosition::B1, 2> k1, v1;
  TQue<TPosition::CO1, 2> s0;
  TQue<TPosition::CO1, 1> o0;
  LocalTensor<QT> queries;
  LocalTensor<float> sums;
  int64_t group = 0;
};
