// A cube core: scores = Q Kt of tile t, then outputs += P V of tile t - 2, while its vector cores make weights of t - 1.
//
// Operands go L1 -> L0A, L0B a part of the inner size at a time, double-buffered; sums stay in L0C until an item ends.
class Product {
 public:
  TQue<TPosition::A2, 2> left;
  TQue<TPosition::B2, 2> right;
  __aicore__ inline void init(TPipe& pipe, int64_t left_bytes, int64_t right_bytes) {
    pipe.InitBuffer(left, 2, (uint32_t)left_bytes);
    pipe.InitBuffer(right, 2, (uint32_t)right_bytes);
  }
  // sums[m, n] (+)= a[m, k] b; b lies [n, k], or [k, n] where it is `upright`, which 16-bit types allow.
  template <class T, bool upright>
  __aicore__ inline void add(const LocalTensor<float>& sums, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t m, int32_t n, int32_t k,
                             int32_t step, bool fresh) {
    constexpr int32_t C0 = 32 / sizeof(T);
    int32_t high = (int32_t)up(m, 16) / 16, wide = (int32_t)up(n, 16) / 16, tall = (int32_t)up(k, 16) / 16;
    for (int32_t from = 0; from < k; from += step) {
      int32_t depth = (int32_t)least(step, k - from), deep = (int32_t)up(depth, C0) / C0;
      LocalTensor<T> l = left.AllocTensor<T>();
      for (int32_t i = 0; i < high; i++)
        LoadData(l[i * deep * 16 * C0], a[(from / C0 * high + i) * 16 * C0], LoadData2DParams(0, (uint8_t)deep, (uint16_t)high, 0, 0, false, 0));
      left.EnQue(l);
      LocalTensor<T> r = right.AllocTensor<T>();
      for (int32_t j = 0; j < deep; j++) {
        if constexpr (upright)
          LoadData(r[j * wide * 256], b[(from / 16 + j) * 256], LoadData2DParams(0, (uint8_t)wide, (uint16_t)tall, 0, 0, true, 0));
        else
          LoadData(r[j * wide * 16 * C0], b[(from / C0 + j) * wide * 16 * C0], LoadData2DParams(0, (uint8_t)wide, 1, 0, 0, false, 0));
      }
      right.EnQue(r);
      l = left.DeQue<T>(), r = right.DeQue<T>();
      MmadParams params;
      params.m = m, params.n = n, params.k = depth, params.cmatrixInitVal = fresh && from == 0;
      if ((m / 16) * (n / 16) < 10) PipeBarrier<PIPE_M>();
      Mmad(sums, l, r, params);
      left.FreeTensor(l);
      right.FreeTensor(r);
    }
  }
};

// Rows of a matrix into L1. A product of one row would be of a vector: its row is there twice.
template <class T>
__aicore__ inline void copy_rows(const LocalTensor<T>& to, const GlobalTensor<T>& from, int32_t rows, int32_t columns, int64_t stride) {
  constexpr int32_t C0 = 32 / sizeof(T);
  uint16_t high = (uint16_t)up(rows, 16);
  DataCopy(to, from, Nd2NzParams(1, (uint16_t)rows, (uint16_t)columns, 0, (uint16_t)stride, high, 1, 0));
  if (rows == 1) DataCopy(to[C0], from, Nd2NzParams(1, 1, (uint16_t)columns, 0, (uint16_t)stride, high, 1, 0));
}
__aicore__ inline int32_t at_least_two(int32_t rows) { return rows < 2 ? 2 : rows; }
template <class T> struct Narrowing { static constexpr QuantMode_t MODE = QuantMode_t::F322F16; };
template <> struct Narrowing<bfloat16_t> { static constexpr QuantMode_t MODE = QuantMode_t::F322BF16; };
template <class T> __aicore__ inline void write_rows(const GlobalTensor<T>& to, const LocalTensor<float>& from, int32_t rows, int32_t columns, int64_t stride) {
  FixpipeParamsV220 params((uint16_t)columns, (uint16_t)rows, (uint16_t)up(at_least_two(rows), 16), (uint32_t)stride, false);
  if constexpr (sizeof(T) == 2) params.quantPre = Narrowing<T>::MODE;
  Fixpipe<T, float, CFG_ROW_MAJOR>(to, from, params);
}

class Cube {
 public:
  __aicore__ inline Cube(const Operands& o) : o(o) {}
  __aicore__ inline void run() {
    int64_t v_bytes = up(o.c, 16) * up(o.dv, 16) * sizeof(VT), p_bytes = up(o.r, 16) * up(o.c, 16) * sizeof(VT);
    pipe.InitBuffer(v1, 2, (uint32_t)v_bytes);
    pipe.InitBuffer(p1, 2, (uint32_t)p_bytes);
    if (PRODUCT) {
      pipe.InitBuffer(q1, 2, (uint32_t)(up(o.r, 16) * up(o.d, 16) * sizeof(QT)));
      pipe.InitBuffer(k1, 2, (uint32_t)(up(o.c, 16) * up(o.d, 16) * sizeof(QT)));
      pipe.InitBuffer(s0, 1, (uint32_t)(up(o.r, 16) * up(o.c, 16) * 4));
    }
    pipe.InitBuffer(o0, 1, (uint32_t)(up(o.r, 16) * up(o.dv, 16) * 4));
    product.init(pipe, o.left, o.right);
    SyncAll<false>();
    DataCacheCleanAndInvalid<int32_t, CacheLine::ENTIRE_DATA_CACHE, DcciDst::CACHELINE_OUT>(o.blocks);
    group = GetBlockIdx();
    Walk walk(o, group);
    int64_t t = 0;
    for (; walk.next(ring[t % DEPTH]); t++) {
      scores(ring[t % DEPTH], (int)(t % DEPTH));
      if (t >= 2) outputs(ring[(t - 2) % DEPTH], (int)((t - 2) % DEPTH));
    }
    for (int64_t late = t < 2 ? 0 : t - 2; late < t; late++) outputs(ring[late % DEPTH], (int)(late % DEPTH));
  }

 private:
  __aicore__ inline void scores(const Step& s, int slot) {
    if constexpr (!PRODUCT) return CrossCoreSetFlag<2, PIPE_MTE2>(SCORES);
    if (s.opens) {
      LocalTensor<QT> q = q1.AllocTensor<QT>();
      copy_rows(q, o.q[(s.row0 * o.q_heads + head_q(o, s.h)) * o.d], s.rows, (int32_t)o.d, o.q_heads * o.d);
      q1.EnQue(q);
      queries = q1.DeQue<QT>();
    }
    LocalTensor<QT> k = k1.AllocTensor<QT>();
    copy_rows(k, o.k[(s.key0 * o.k_heads + head_k(o, s.h)) * o.d], s.columns, (int32_t)o.d, o.k_heads * o.d);
    k1.EnQue(k);
    k = k1.DeQue<QT>();
    LocalTensor<float> sums = s0.AllocTensor<float>();
    product.add<QT, false>(sums, queries, k, at_least_two(s.rows), s.columns, (int32_t)o.d, (int32_t)o.d_step, true);
    k1.FreeTensor(k);
    if (s.closes) q1.FreeTensor(queries);
    s0.EnQue(sums);
    sums = s0.DeQue<float>();
    write_rows<float>(o.s[(group * DEPTH + slot) * o.r * o.c], sums, s.rows, s.columns, o.c);
    s0.FreeTensor(sums);
    CrossCoreSetFlag<2, PIPE_FIX>(SCORES);
  }
  __aicore__ inline void outputs(const Step& s, int slot) {
    CrossCoreWaitFlag(WEIGHTS);
    if (s.phase < PHASES - 1) return;
    constexpr bool upright = sizeof(VT) == 2;
    LocalTensor<VT> p = p1.AllocTensor<VT>();
    copy_rows(p, o.p[(group * DEPTH + slot) * o.r * o.c], s.rows, s.columns, o.c);
    p1.EnQue(p);
    LocalTensor<VT> v = v1.AllocTensor<VT>();
    int64_t h = head_v(o, s.h);
    if constexpr (upright) copy_rows(v, o.v[(s.key0 * o.v_heads + h) * o.dv], s.columns, (int32_t)o.dv, o.v_heads * o.dv);
    else copy_rows(v, o.vt[(s.key_tile * o.v_heads + h) * o.dv * o.c], (int32_t)o.dv, s.columns, o.c);
    v1.EnQue(v);
    p = p1.DeQue<VT>(), v = v1.DeQue<VT>();
    if (s.begins) sums = o0.AllocTensor<float>();
    product.add<VT, upright>(sums, p, v, at_least_two(s.rows), (int32_t)o.dv, s.columns, (int32_t)o.c_step, s.begins);
    p1.FreeTensor(p);
    v1.FreeTensor(v);
    if (!s.ends) return;
    o0.EnQue(sums);
    sums = o0.DeQue<float>();
    write_rows<OT>(o.out[(s.row0 * o.heads + s.h) * o.dv], sums, s.rows, (int32_t)o.dv, o.heads * o.dv);
    o0.FreeTensor(sums);
  }
  const Operands& o;
  TPipe pipe;
  Product product;
  TQue<TPosition::A1, 2> q1, p1;
  TQue<TPosition::B1, 2> k1, v1;
  TQue<TPosition::CO1, 1> s0, o0;
  LocalTensor<QT> queries;
  LocalTensor<float> sums;
  Step ring[DEPTH];
  int64_t group = 0;
};
