// A cube core of the backward: S = Q Kt and dP = dO Vt of tile t, then dV += Pt dO, dK += dSt Q, dQ += dS K of tile t - 2,
// while its vector cores are at t - 1. Q and dO of an item and K of a tile stay in L1 until they are multiplied the second
// time, dQ in L0C while an item lasts; dK and dV are added to global memory, s_step keys at a time.
class Cube {
 public:
  __aicore__ inline Cube(const Operands& o) : o(o) {}
  __aicore__ inline void run() {
    int64_t r = up(o.r, 16), d = up(o.d, 16), dv = up(o.dv, 16), wide = most(d, dv), bytes = most(sizeof(QT), sizeof(VT));
    pipe.InitBuffer(g1, DEPTH, (uint32_t)(r * dv * sizeof(VT)));
    pipe.InitBuffer(v1, 2, (uint32_t)(o.s_step * dv * sizeof(VT)));
    if (PRODUCT) {
      pipe.InitBuffer(q1, DEPTH, (uint32_t)(r * d * sizeof(QT)));
      pipe.InitBuffer(k1, DEPTH, (uint32_t)(up(o.c, 16) * d * sizeof(QT)));
      pipe.InitBuffer(dq0, 1, (uint32_t)(r * d * 4));
    }
    pipe.InitBuffer(p1, 2, (uint32_t)(r * o.s_step * bytes));
    if (sizeof(QT) == 4 || sizeof(VT) == 4) pipe.InitBuffer(b1, 1, (uint32_t)(most(r, o.s_step) * wide * 4));
    pipe.InitBuffer(s0, 1, (uint32_t)(r * o.s_step * 4));
    pipe.InitBuffer(t0, 1, (uint32_t)(o.s_step * wide * 4));
    product.init(pipe, o.left, o.right);
    group = GetBlockIdx();
    overlap(o, *this);
    SyncAll<false>();
  }
  __aicore__ inline void scores(const Step& s, int slot) {
    int64_t at = (group * o.s_slots + s.slot) * o.r * o.c;
    Held& held = ring[slot];
    if (s.opens) {
      item.gradients = g1.AllocTensor<VT>();
      copy_rows(item.gradients, o.grad[(s.row0 * o.heads + s.h) * o.dv], s.rows, (int32_t)o.dv, o.heads * o.dv);
      g1.EnQue(item.gradients);
      item.gradients = g1.DeQue<VT>();
    }
    if constexpr (PRODUCT) {
      if (s.opens) {
        item.queries = q1.AllocTensor<QT>();
        copy_rows(item.queries, o.q[(s.row0 * o.q_heads + head_q(o, s.h)) * o.d], s.rows, (int32_t)o.d, o.q_heads * o.d);
        q1.EnQue(item.queries);
        item.queries = q1.DeQue<QT>();
      }
      if (needs_keys(s)) item.keys = k1.AllocTensor<QT>();
      for (int32_t x = 0; x < s.columns && needs_keys(s); x += (int32_t)o.s_step)
        copy_rows(item.keys[x * up(o.d, 16)], o.k[((s.key0 + x) * o.k_heads + head_k(o, s.h)) * o.d], part(s, x), (int32_t)o.d, o.k_heads * o.d);
      if (needs_keys(s)) {
        k1.EnQue(item.keys);
        item.keys = k1.DeQue<QT>();
      }
    }
    held = item;
    for (int32_t x = 0; x < s.columns; x += (int32_t)o.s_step) {
      if constexpr (PRODUCT)
        if (makes_scores(s)) square<ST>(o.s[at + x], held.queries, held.keys[x * up(o.d, 16)], s, x, o.d);
      if (!makes_gradients(s)) continue;
      LocalTensor<VT> v = v1.AllocTensor<VT>();
      copy_rows(v, o.v[((s.key0 + x) * o.v_heads + head_v(o, s.h)) * o.dv], part(s, x), (int32_t)o.dv, o.v_heads * o.dv);
      v1.EnQue(v);
      v = v1.DeQue<VT>();
      square<GT>(o.g[at + x], held.gradients, v, s, x, o.dv);
      v1.FreeTensor(v);
    }
    CrossCoreSetFlag<2, PIPE_FIX>(SCORES);
  }
  // What is multiplied has been read when dV and dK of it are written: the flag of scores comes after that.
  __aicore__ inline void outputs(const Step& s, int slot) {
    CrossCoreWaitFlag(WEIGHTS);
    Held& held = ring[slot];
    int64_t at = (group * DEPTH + slot) * o.r * o.c;
    for (int32_t x = 0; x < s.columns && s.phase == PHASES - 1; x += (int32_t)o.s_step) {
      if (NEEDS_V) values(s, held, at, x);
      if constexpr (SLOPES) products(s, held, at, x);
    }
    if (SLOPES && s.ends) give_queries(s);
    if constexpr (PRODUCT) {
      if (needs_keys(s)) k1.FreeTensor(held.keys);
      if (s.closes) q1.FreeTensor(held.queries);
    }
    if (s.closes) g1.FreeTensor(held.gradients);
  }

 private:
  struct Held {  // of a tile, in L1
    LocalTensor<QT> queries, keys;
    LocalTensor<VT> gradients;
  };
  __aicore__ inline bool makes_scores(const Step& s) { return !s.kept || s.phase == 0; }
  __aicore__ inline bool makes_gradients(const Step& s) { return s.kept ? s.phase == GRADIENTS_FROM : s.phase >= GRADIENTS_FROM; }
  __aicore__ inline bool needs_keys(const Step& s) { return makes_scores(s) || s.phase == PHASES - 1; }
  __aicore__ inline int32_t part(const Step& s, int32_t x) { return (int32_t)least(o.s_step, s.columns - x); }
  template <class To, class T>
  __aicore__ inline void square(const GlobalTensor<To>& to, const LocalTensor<T>& a, const LocalTensor<T>& b, const Step& s, int32_t x, int64_t width) {
    LocalTensor<float> sums = s0.AllocTensor<float>();
    product.template add<T, false>(sums, a, b, at_least_two(s.rows), part(s, x), (int32_t)width, (int32_t)o.d_step, true);
    s0.EnQue(sums);
    sums = s0.DeQue<float>();
    write_rows<To>(to, sums, s.rows, part(s, x), o.c);
    s0.FreeTensor(sums);
  }
  template <class T> __aicore__ inline LocalTensor<T> left(const GlobalTensor<T>& from, int32_t rows, int32_t columns, int64_t stride) {
    LocalTensor<T> a = p1.AllocTensor<T>();
    copy_rows(a, from, rows, columns, stride);
    p1.EnQue(a);
    return p1.DeQue<T>();
  }
  template <class T> __aicore__ inline LocalTensor<T> right(const GlobalTensor<float>& from, int32_t rows, int32_t columns, int64_t stride) {
    LocalTensor<T> b = b1.AllocTensor<T>();
    copy_rows(b.template ReinterpretCast<float>(), from, rows, columns, stride);
    b1.EnQue(b);
    return b1.DeQue<T>();
  }
  __aicore__ inline void values(const Step& s, const Held& held, int64_t at, int32_t x) {
    int64_t head = head_v(o, s.h);
    GlobalTensor<float> to = o.sums[o.dv_first + ((s.key0 + x) * o.v_heads + head) * o.dv];
    if constexpr (sizeof(VT) == 4) {
      LocalTensor<VT> p = left<VT>(o.pt[at + x * o.r].ReinterpretCast<VT>(), part(s, x), s.rows, o.r);
      LocalTensor<VT> g = right<VT>(o.grad_t[(s.block * o.heads + s.h) * o.dv * o.r], (int32_t)o.dv, s.rows, o.r);
      to_keys<VT>(to, o.v_heads * o.dv, p, g, s, x, (int32_t)o.dv);
      b1.FreeTensor(g);
      p1.FreeTensor(p);
    } else {
      LocalTensor<VT> p = left<VT>(o.p[at + x], s.rows, part(s, x), o.c);
      to_keys<VT>(to, o.v_heads * o.dv, p, held.gradients, s, x, (int32_t)o.dv);
      p1.FreeTensor(p);
    }
  }
  __aicore__ inline void products(const Step& s, const Held& held, int64_t at, int32_t x) {
    int64_t q_head = head_q(o, s.h), k_head = head_k(o, s.h);
    GlobalTensor<float> to = o.sums[o.dk_first + ((s.key0 + x) * o.k_heads + k_head) * o.d];
    if constexpr (sizeof(QT) == 4) {
      LocalTensor<QT> turned = left<QT>(o.dst[at + x * o.r].ReinterpretCast<QT>(), part(s, x), s.rows, o.r);
      LocalTensor<QT> q = right<QT>(o.qt[(s.block * o.q_heads + q_head) * o.d * o.r], (int32_t)o.d, s.rows, o.r);
      to_keys<QT>(to, o.k_heads * o.d, turned, q, s, x, (int32_t)o.d);
      b1.FreeTensor(q);
      p1.FreeTensor(turned);
    }
    LocalTensor<QT> ds = left<QT>(o.ds[at + x], s.rows, part(s, x), o.c);
    if constexpr (sizeof(QT) == 2) to_keys<QT>(to, o.k_heads * o.d, ds, held.queries, s, x, (int32_t)o.d);
    if (s.begins && x == 0) dq = dq0.AllocTensor<float>();
    if constexpr (sizeof(QT) == 4) {
      LocalTensor<QT> k = right<QT>(o.kt[(s.key_tile * o.k_heads + k_head) * o.d * o.c + x], (int32_t)o.d, part(s, x), o.c);
      to_queries<QT>(s, ds, k, x);
      b1.FreeTensor(k);
    } else to_queries<QT>(s, ds, held.keys[x * up(o.d, 16)], x);
    p1.FreeTensor(ds);
  }
  // tile[keys, width] += (weights or slopes)t (dO or Q).
  template <class T>
  __aicore__ inline void to_keys(const GlobalTensor<float>& to, int64_t to_stride, const LocalTensor<T>& a, const LocalTensor<T>& b, const Step& s,
                                 int32_t x, int32_t width) {
    constexpr bool whole = sizeof(T) == 4;
    LocalTensor<float> sums = t0.AllocTensor<float>();
    product.template add<T, !whole, !whole>(sums, a, b, at_least_two(part(s, x)), width, s.rows, (int32_t)o.c_step, true);
    t0.EnQue(sums);
    sums = t0.DeQue<float>();
    SetAtomicAdd<float>();
    write_rows<float>(to, sums, part(s, x), width, to_stride);
    SetAtomicNone();
    t0.FreeTensor(sums);
  }
  template <class T> __aicore__ inline void to_queries(const Step& s, const LocalTensor<T>& ds, const LocalTensor<T>& k, int32_t x) {
    product.template add<T, sizeof(T) == 2>(dq, ds, k, at_least_two(s.rows), (int32_t)o.d, part(s, x), (int32_t)o.c_step, s.begins && x == 0);
  }
  __aicore__ inline void give_queries(const Step& s) {
    dq0.EnQue(dq);
    dq = dq0.DeQue<float>();
    SetAtomicAdd<float>();
    write_rows<float>(o.sums[(s.row0 * o.q_heads + head_q(o, s.h)) * o.d], dq, s.rows, (int32_t)o.d, o.q_heads * o.d);
    SetAtomicNone();
    dq0.FreeTensor(dq);
  }
  const Operands& o;
  TPipe pipe;
  Product product;
  TQue<TPosition::A1, DEPTH> q1, g1;
  TQue<TPosition::A1, 2> p1;
  TQue<TPosition::B1, DEPTH> k1;
  TQue<TPosition::B1, 2> v1;
  TQue<TPosition::B1, 1> b1;
  TQue<TPosition::CO1, 1> s0, t0, dq0;
  Held item, ring[DEPTH];
  LocalTensor<float> dq;
  int64_t group = 0;
};
