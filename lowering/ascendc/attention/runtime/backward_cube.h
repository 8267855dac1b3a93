// A cube core of the backward: S = Q Kt and dP = dO Vt of tile t, then dV += Pt dO, dK += dSt Q, dQ += dS K of tile t - 2,
// while its vector cores are at t - 1. dQ stays in L0C while an item lasts; dK and dV are added to global memory.
class Cube {
 public:
  __aicore__ inline Cube(const Operands& o) : o(o) {}
  __aicore__ inline void run() {
    int64_t r = up(o.r, 16), c = up(o.c, 16), d = up(o.d, 16), dv = up(o.dv, 16), wide = most(d, dv), bytes = most(sizeof(QT), sizeof(VT));
    pipe.InitBuffer(g1, 1, (uint32_t)(r * dv * sizeof(VT)));
    pipe.InitBuffer(v1, 1, (uint32_t)(c * dv * sizeof(VT)));
    if (PRODUCT) {
      pipe.InitBuffer(q1, 1, (uint32_t)(r * d * sizeof(QT)));
      pipe.InitBuffer(k1, 1, (uint32_t)(c * d * sizeof(QT)));
      pipe.InitBuffer(dq0, 1, (uint32_t)(r * d * 4));
    }
    pipe.InitBuffer(p1, 1, (uint32_t)(r * c * bytes));
    pipe.InitBuffer(b1, 1, (uint32_t)(most(r, c) * wide * bytes));
    pipe.InitBuffer(s0, 1, (uint32_t)(r * c * 4));
    pipe.InitBuffer(t0, 1, (uint32_t)(c * wide * 4));
    product.init(pipe, o.left, o.right);
    group = GetBlockIdx();
    overlap(o, *this);
    SyncAll<false>();
  }
  __aicore__ inline void scores(const Step& s, int slot) {
    if (s.opens) {
      LocalTensor<VT> g = g1.AllocTensor<VT>();
      copy_rows(g, o.grad[(s.row0 * o.heads + s.h) * o.dv], s.rows, (int32_t)o.dv, o.heads * o.dv);
      g1.EnQue(g);
      gradients = g1.DeQue<VT>();
      if (PRODUCT) {
        LocalTensor<QT> q = q1.AllocTensor<QT>();
        copy_rows(q, o.q[(s.row0 * o.q_heads + head_q(o, s.h)) * o.d], s.rows, (int32_t)o.d, o.q_heads * o.d);
        q1.EnQue(q);
        queries = q1.DeQue<QT>();
      }
    }
    int64_t at = (group * DEPTH + slot) * o.r * o.c;
    if (PRODUCT)
      square<QT>(o.s[at], queries, k1, o.k[(s.key0 * o.k_heads + head_k(o, s.h)) * o.d], o.k_heads * o.d, s, o.d, o.d_step);
    square<VT>(o.g[at], gradients, v1, o.v[(s.key0 * o.v_heads + head_v(o, s.h)) * o.dv], o.v_heads * o.dv, s, o.dv, o.d_step);
    if (s.closes) {
      g1.FreeTensor(gradients);
      if (PRODUCT) q1.FreeTensor(queries);
    }
    CrossCoreSetFlag<2, PIPE_FIX>(SCORES);
  }
  __aicore__ inline void outputs(const Step& s, int slot) {
    CrossCoreWaitFlag(WEIGHTS);
    if (s.phase < PHASES - 1) return;
    int64_t at = (group * DEPTH + slot) * o.r * o.c, v_head = head_v(o, s.h);
    if (NEEDS_V) {
      LocalTensor<VT> p;
      if constexpr (sizeof(VT) == 4) p = left<VT>(o.pt[at].ReinterpretCast<VT>(), s.columns, s.rows, o.r);
      else p = left<VT>(o.p[at], s.rows, s.columns, o.c);
      to_keys<VT>(o.sums[o.dv_first + (s.key0 * o.v_heads + v_head) * o.dv], o.v_heads * o.dv, p, o.grad[(s.row0 * o.heads + s.h) * o.dv],
                  o.heads * o.dv, o.grad_t[(s.block * o.heads + s.h) * o.dv * o.r], s, (int32_t)o.dv);
      p1.FreeTensor(p);
    }
    if (!SLOPES) return;
    int64_t q_head = head_q(o, s.h), k_head = head_k(o, s.h);
    LocalTensor<QT> ds;
    if constexpr (sizeof(QT) == 4) ds = left<QT>(o.dst[at].ReinterpretCast<QT>(), s.columns, s.rows, o.r);
    else ds = left<QT>(o.ds[at], s.rows, s.columns, o.c);
    to_keys<QT>(o.sums[o.dk_first + (s.key0 * o.k_heads + k_head) * o.d], o.k_heads * o.d, ds, o.q[(s.row0 * o.q_heads + q_head) * o.d],
                o.q_heads * o.d, o.qt[(s.block * o.q_heads + q_head) * o.d * o.r], s, (int32_t)o.d);
    if constexpr (sizeof(QT) == 4) {
      p1.FreeTensor(ds);
      ds = left<QT>(o.ds[at], s.rows, s.columns, o.c);
    }
    to_queries(s, ds, q_head, k_head);
    p1.FreeTensor(ds);
  }

 private:
  template <class T, class Queue>
  __aicore__ inline void square(const GlobalTensor<float>& to, const LocalTensor<T>& a, Queue& queue, const GlobalTensor<T>& rows, int64_t stride,
                                const Step& s, int64_t width, int64_t step) {
    LocalTensor<T> b = queue.template AllocTensor<T>();
    copy_rows(b, rows, s.columns, (int32_t)width, stride);
    queue.EnQue(b);
    b = queue.template DeQue<T>();
    LocalTensor<float> sums = s0.AllocTensor<float>();
    product.template add<T, false>(sums, a, b, at_least_two(s.rows), s.columns, (int32_t)width, (int32_t)step, true);
    queue.FreeTensor(b);
    s0.EnQue(sums);
    sums = s0.DeQue<float>();
    write_rows<float>(to, sums, s.rows, s.columns, o.c);
    s0.FreeTensor(sums);
  }
  template <class T> __aicore__ inline LocalTensor<T> left(const GlobalTensor<T>& from, int32_t rows, int32_t columns, int64_t stride) {
    LocalTensor<T> a = p1.AllocTensor<T>();
    copy_rows(a, from, rows, columns, stride);
    p1.EnQue(a);
    return p1.DeQue<T>();
  }
  // tile[keys, width] += (weights or slopes)t (dO or Q).
  template <class T>
  __aicore__ inline void to_keys(const GlobalTensor<float>& to, int64_t to_stride, const LocalTensor<T>& a, const GlobalTensor<T>& rows,
                                 int64_t stride, const GlobalTensor<float>& turned, const Step& s, int32_t width) {
    constexpr bool whole = sizeof(T) == 4;
    LocalTensor<T> b = b1.AllocTensor<T>();
    if constexpr (whole) copy_rows(b, turned, width, s.rows, o.r);
    else copy_rows(b, rows, s.rows, width, stride);
    b1.EnQue(b);
    b = b1.DeQue<T>();
    LocalTensor<float> sums = t0.AllocTensor<float>();
    product.template add<T, !whole, !whole>(sums, a, b, at_least_two(s.columns), width, s.rows, (int32_t)o.c_step, true);
    b1.FreeTensor(b);
    t0.EnQue(sums);
    sums = t0.DeQue<float>();
    SetAtomicAdd<float>();
    write_rows<float>(to, sums, s.columns, width, to_stride);
    SetAtomicNone();
    t0.FreeTensor(sums);
  }
  __aicore__ inline void to_queries(const Step& s, const LocalTensor<QT>& ds, int64_t q_head, int64_t k_head) {
    constexpr bool whole = sizeof(QT) == 4;
    LocalTensor<QT> b = b1.AllocTensor<QT>();
    if constexpr (whole) copy_rows(b.ReinterpretCast<float>(), o.kt[(s.key_tile * o.k_heads + k_head) * o.d * o.c], (int32_t)o.d, s.columns, o.c);
    else copy_rows(b, o.k[(s.key0 * o.k_heads + k_head) * o.d], s.columns, (int32_t)o.d, o.k_heads * o.d);
    b1.EnQue(b);
    b = b1.DeQue<QT>();
    if (s.begins) dq = dq0.AllocTensor<float>();
    product.add<QT, !whole>(dq, ds, b, at_least_two(s.rows), (int32_t)o.d, s.columns, (int32_t)o.c_step, s.begins);
    b1.FreeTensor(b);
    if (!s.ends) return;
    dq0.EnQue(dq);
    dq = dq0.DeQue<float>();
    SetAtomicAdd<float>();
    write_rows<float>(o.sums[(s.row0 * o.q_heads + q_head) * o.d], dq, s.rows, (int32_t)o.d, o.q_heads * o.d);
    SetAtomicNone();
    dq0.FreeTensor(dq);
  }
  const Operands& o;
  TPipe pipe;
  Product product;
  TQue<TPosition::A1, 1> q1, g1, p1;
  TQue<TPosition::B1, 1> k1, v1, b1;
  TQue<TPosition::CO1, 1> s0, t0, dq0;
  LocalTensor<QT> queries;
  LocalTensor<VT> gradients;
  LocalTensor<float> dq;
  int64_t group = 0;
};
