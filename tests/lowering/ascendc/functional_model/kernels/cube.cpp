// C = A B through L1, L0A, L0B, L0C; B may lie transposed. Each mutant breaks one rule; 0 breaks none.
#include "kernel_operator.h"
using namespace AscendC;

enum Mutant {
  NOTHING, L1_OVERFLOW, L0C_OVERFLOW, NO_L1_FLAG, NO_L0_FLAG, NO_FIX_FLAG, ADDRESS, TRANSPOSED_TYPE, EMPTY_FRACTAL, MATRIX_VECTOR,
  QUANTISATION, COLUMNS, VECTOR_UNIT, WRONG_BUFFER, EDGE_READ, TYPES, ROW_STEP, UNIFIED_BUFFER,
  TWICE, TWICE_AT_ONCE,
};

template <class T, class C> class Product {
 public:
  static constexpr int C0 = 32 / sizeof(T);
  Product(int m, int n, int k, bool transposed, int mutant) : m(m), n(n), k(k), transposed(transposed), mutant(mutant) {}
  // From the left and the right matrix in global memory, k0 of the inner size at a time.
  void run(GlobalTensor<T> ga, GlobalTensor<T> gb, GlobalTensor<C> gc, int k0) {
    int rows = up(m, 16), columns = up(n, 16), inner = up(k0, C0 > 16 ? C0 : 16);
    pipe.InitBuffer(a1, mutant == L1_OVERFLOW ? 524288 : rows * inner * sizeof(T));
    pipe.InitBuffer(b1, columns * inner * sizeof(T));
    pipe.InitBuffer(a2, rows * inner * sizeof(T));
    pipe.InitBuffer(b2, columns * inner * sizeof(T));
    pipe.InitBuffer(co, mutant == L0C_OVERFLOW ? 131104 : rows * columns * 4);
    LocalTensor<float> sums = co.Get<float>();
    for (int from = 0; from < k; from += k0) {
      if (from) WaitFlag<HardEvent::MTE1_MTE2>(EVENT_ID0), WaitFlag<HardEvent::M_MTE1>(EVENT_ID0);
      int depth = k - from < k0 ? k - from : k0;
      copy_in(ga, gb, from, depth);
      if (mutant != NO_L1_FLAG) SetFlag<HardEvent::MTE2_MTE1>(EVENT_ID0), WaitFlag<HardEvent::MTE2_MTE1>(EVENT_ID0);
      load(depth);
      if (mutant != NO_L0_FLAG) SetFlag<HardEvent::MTE1_M>(EVENT_ID0), WaitFlag<HardEvent::MTE1_M>(EVENT_ID0);
      MmadParams params;
      params.m = mutant == MATRIX_VECTOR ? 1 : m, params.n = n, params.k = mutant == EDGE_READ ? depth + 1 : depth;
      params.cmatrixInitVal = from == 0;
      LocalTensor<T> left = a2.template Get<T>(), right = b2.template Get<T>();
      if (mutant == WRONG_BUFFER) Mmad(sums, right, left, params);
      else if (mutant == TYPES) Mmad(sums.ReinterpretCast<int32_t>(), left, right, params);
      else Mmad(sums, left, right, params);
      if (mutant == TWICE) PipeBarrier<PIPE_M>();
      params.cmatrixInitVal = false;
      if (mutant == TWICE || mutant == TWICE_AT_ONCE) Mmad(sums, left, right, params);
      if (from + k0 < k) SetFlag<HardEvent::MTE1_MTE2>(EVENT_ID0), SetFlag<HardEvent::M_MTE1>(EVENT_ID0);
    }
    if (mutant != NO_FIX_FLAG) SetFlag<HardEvent::M_FIX>(EVENT_ID0), WaitFlag<HardEvent::M_FIX>(EVENT_ID0);
    copy_out(gc, sums);
    if (mutant == VECTOR_UNIT) Duplicate(sums, 0.0f, 64);
    if (mutant == UNIFIED_BUFFER) pipe.InitBuffer(unified, 32);
  }

 private:
  static int up(int x, int to) { return (x + to - 1) / to * to; }
  void copy_in(GlobalTensor<T> ga, GlobalTensor<T> gb, int from, int depth) {
    Nd2NzParams left(1, m, depth, 0, k, up(m, 16), 1, 0);
    if (mutant == ROW_STEP) left.dstNzNStride = 0;
    LocalTensor<T> a = a1.template Get<T>();
    DataCopy(mutant == ADDRESS ? a[8] : a, ga[from], left);
    if (transposed) DataCopy(b1.template Get<T>(), gb[from], Nd2NzParams(1, n, depth, 0, k, up(n, 16), 1, 0));
    else DataCopy(b1.template Get<T>(), gb[from * n], Nd2NzParams(1, depth, n, 0, n, up(depth, 16), 1, 0));
  }
  void load(int depth) {
    int high = up(m, 16) / 16, wide = up(n, 16) / 16, deep = up(depth, C0) / C0;
    LocalTensor<T> a = a1.template Get<T>(), b = b1.template Get<T>(), left = a2.template Get<T>(), right = b2.template Get<T>();
    for (int i = 0; i < high; i++) LoadData(left[i * deep * 16 * C0], a[i * 16 * C0], LoadData2DParams(0, deep, high, 0, 0, false, 0));
    if (transposed) {
      LoadData(right, b, LoadData2DParams(0, deep * wide, 1, 0, 0, mutant == TRANSPOSED_TYPE, 0));
    } else {
      int tall = up(depth, 16) / 16;
      for (int i = 0; i < tall; i++) LoadData(right[i * wide * 256], b[i * 256], LoadData2DParams(mutant == EMPTY_FRACTAL ? 1 : 0, wide, tall, 0, 0, true, 0));
    }
  }
  void copy_out(GlobalTensor<C> gc, LocalTensor<float> sums) {
    FixpipeParamsV220 params(mutant == COLUMNS ? n + 16 : n, m, up(m, 16), n, false);
    params.quantPre = mutant == QUANTISATION || std::is_same_v<C, float> ? NoQuant : std::is_same_v<C, half> ? F322F16 : F322BF16;
    Fixpipe<C, float, CFG_ROW_MAJOR>(gc, sums, params);
  }
  int m, n, k;
  bool transposed;
  int mutant;
  TPipe pipe;
  TBuf<TPosition::A1> a1;
  TBuf<TPosition::B1> b1;
  TBuf<TPosition::A2> a2;
  TBuf<TPosition::B2> b2;
  TBuf<TPosition::CO1> co;
  TBuf<TPosition::VECCALC> unified;
};

template <class T, class C> void product(GM_ADDR a, GM_ADDR b, GM_ADDR c, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  GlobalTensor<T> ga, gb;
  GlobalTensor<C> gc;
  ga.SetGlobalBuffer((__gm__ T*)a, t.m * t.k), gb.SetGlobalBuffer((__gm__ T*)b, t.k * t.n), gc.SetGlobalBuffer((__gm__ C*)c, t.m * t.n);
  Product<T, C>(t.m, t.n, t.k, t.transposed, t.mutant).run(ga, gb, gc, t.k0);
}
#define PRODUCT(name, T, C) extern "C" __global__ __aicore__ void name(GM_ADDR a, GM_ADDR b, GM_ADDR c, GM_ADDR tiling) { product<T, C>(a, b, c, tiling); }
PRODUCT(half_to_float, half, float)
PRODUCT(half_to_half, half, half)
PRODUCT(bfloat16_to_bfloat16, bfloat16_t, bfloat16_t)
PRODUCT(float_to_float, float, float)
