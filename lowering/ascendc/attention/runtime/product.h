// Products of the cube core. Operands go L1 -> L0A, L0B a part of the inner size at a time, double-buffered; sums stay in L0C until an item ends.
class Product {
 public:
  TQue<TPosition::A2, 2> left;
  TQue<TPosition::B2, 2> right;
  __aicore__ inline void init(TPipe& pipe, int64_t left_bytes, int64_t right_bytes) {
    pipe.InitBuffer(left, 2, (uint32_t)left_bytes);
    pipe.InitBuffer(right, 2, (uint32_t)right_bytes);
  }
  // sums[m, n] (+)= a b; a lies [m, k], or [k, m] where it is `leaning`; b lies [n, k], or [k, n] where it is `upright`:
  // 16-bit types allow that.
  template <class T, bool upright, bool leaning = false>
  __aicore__ inline void add(const LocalTensor<float>& sums, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t m, int32_t n, int32_t k,
                             int32_t step, bool fresh) {
    constexpr int32_t C0 = 32 / sizeof(T);
    int32_t high = (int32_t)up(m, 16) / 16, wide = (int32_t)up(n, 16) / 16, tall = (int32_t)up(k, 16) / 16;
    for (int32_t from = 0; from < k; from += step) {
      int32_t depth = (int32_t)least(step, k - from), deep = (int32_t)up(depth, C0) / C0;
      LocalTensor<T> l = left.AllocTensor<T>();
      for (int32_t i = 0; i < high; i++) {
        if constexpr (leaning)
          LoadData(l[i * deep * 256], a[(i * tall + from / 16) * 256], LoadData2DParams(0, (uint8_t)deep, 1, 0, 0, true, 0));
        else LoadData(l[i * deep * 16 * C0], a[(from / C0 * high + i) * 16 * C0], LoadData2DParams(0, (uint8_t)deep, (uint16_t)high, 0, 0, false, 0));
      }
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

