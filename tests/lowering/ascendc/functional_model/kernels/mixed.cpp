// O = silu-like P(Q Kt) V, blocks of 32 rows: the cube core makes scores, its two vector cores make weights of half the
// rows each, the cube core multiplies with V. Everything goes through the workspace. Each mutant breaks one rule.
#include "kernel_operator.h"
using namespace AscendC;

enum Mutant {
  NOTHING, SCORES_UNFLAGGED, WEIGHTS_UNFLAGGED, VECTOR_WAITS_FOREVER, CUBE_WAITS_FOREVER, ONE_VECTOR_SILENT, COUNTER_OVERFLOW, FLAG_LEFT, WRONG_PIPE,
  MODE_FOUR, SCORES_AGAIN,
};
constexpr int ROWS = 32, D = 16, SCORES_READY = 1, WEIGHTS_READY = 2;

struct Shape { GlobalTensor<half> q, k, v, weights; GlobalTensor<float> scores, out; int n, mutant; };

class Cube {
 public:
  explicit Cube(const Shape& s) : s(s) {
    pipe.InitBuffer(a1, 8192), pipe.InitBuffer(b1, 8192), pipe.InitBuffer(a2, 8192), pipe.InitBuffer(b2, 8192), pipe.InitBuffer(co, 16384);
  }
  void run() {
    for (int block = 0; block < s.n / ROWS; block++) {
      multiply(s.q[block * ROWS * D], s.k, s.scores, ROWS, s.n, D, true);
      if (s.mutant != SCORES_UNFLAGGED && s.mutant != VECTOR_WAITS_FOREVER) {
        if (s.mutant == WRONG_PIPE) CrossCoreSetFlag<2, PIPE_MTE2>(SCORES_READY);
        else CrossCoreSetFlag<2, PIPE_FIX>(SCORES_READY);
      }
      if (s.mutant == SCORES_AGAIN) multiply(s.q[block * ROWS * D], s.k, s.scores, ROWS, s.n, D, true);
      if (s.mutant == MODE_FOUR) CrossCoreSetFlag<4, PIPE_FIX>(SCORES_READY);
      if (s.mutant == COUNTER_OVERFLOW)
        for (int i = 0; i < 16; i++) CrossCoreSetFlag<2, PIPE_FIX>(7);
      if (s.mutant == FLAG_LEFT) CrossCoreSetFlag<2, PIPE_FIX>(7);
      if (s.mutant != WEIGHTS_UNFLAGGED) CrossCoreWaitFlag(WEIGHTS_READY);
      if (s.mutant == CUBE_WAITS_FOREVER) CrossCoreWaitFlag(9);
      multiply(s.weights, s.v, s.out[block * ROWS * D], ROWS, D, s.n, false);
    }
  }

 private:
  void multiply(GlobalTensor<half> a, GlobalTensor<half> b, GlobalTensor<float> c, int m, int n, int k, bool transposed) {
    LocalTensor<half> left1 = a1.Get<half>(), right1 = b1.Get<half>(), left2 = a2.Get<half>(), right2 = b2.Get<half>();
    LocalTensor<float> sums = co.Get<float>();
    DataCopy(left1, a, Nd2NzParams(1, m, k, 0, k, m, 1, 0));
    DataCopy(right1, b, transposed ? Nd2NzParams(1, n, k, 0, k, n, 1, 0) : Nd2NzParams(1, k, n, 0, n, k, 1, 0));
    PipeBarrier<PIPE_ALL>();
    for (int i = 0; i < m / 16; i++) LoadData(left2[i * k * 16], left1[i * 256], LoadData2DParams(0, k / 16, m / 16, 0, 0, false, 0));
    if (transposed) LoadData(right2, right1, LoadData2DParams(0, k / 16 * (n / 16), 1, 0, 0, false, 0));
    else
      for (int i = 0; i < k / 16; i++) LoadData(right2[i * n * 16], right1[i * 256], LoadData2DParams(0, n / 16, k / 16, 0, 0, true, 0));
    PipeBarrier<PIPE_ALL>();
    MmadParams params;
    params.m = m, params.n = n, params.k = k;
    Mmad(sums, left2, right2, params);
    PipeBarrier<PIPE_ALL>();
    Fixpipe<float, float, CFG_ROW_MAJOR>(c, sums, FixpipeParamsV220(n, m, m, n, false));
    PipeBarrier<PIPE_FIX>();
    SetFlag<HardEvent::FIX_M>(EVENT_ID0), WaitFlag<HardEvent::FIX_M>(EVENT_ID0);
  }
  Shape s;
  TPipe pipe;
  TBuf<TPosition::A1> a1;
  TBuf<TPosition::B1> b1;
  TBuf<TPosition::A2> a2;
  TBuf<TPosition::B2> b2;
  TBuf<TPosition::CO1> co;
};

class Vector {
 public:
  explicit Vector(const Shape& s) : s(s) {
    pipe.InitBuffer(in, 1, ROWS / 2 * s.n * 4), pipe.InitBuffer(out, 1, ROWS / 2 * s.n * 2);
  }
  void run() {
    int half_block = ROWS / 2 * s.n;
    for (int block = 0; block < s.n / ROWS; block++) {
      if (s.mutant != SCORES_UNFLAGGED) CrossCoreWaitFlag(SCORES_READY);
      LocalTensor<float> x = in.AllocTensor<float>();
      DataCopy(x, s.scores[GetSubBlockIdx() * half_block], half_block);
      in.EnQue(x);
      x = in.DeQue<float>();
      LocalTensor<half> w = out.AllocTensor<half>();
      Relu(x, x, half_block);
      Muls(x, x, 0.25f, half_block);
      Cast(w, x, RoundMode::CAST_RINT, half_block);
      out.EnQue(w);
      in.FreeTensor(x);
      w = out.DeQue<half>();
      DataCopy(s.weights[GetSubBlockIdx() * half_block], w, half_block);
      out.FreeTensor(w);
      if (s.mutant == ONE_VECTOR_SILENT && GetSubBlockIdx() == 1) continue;
      CrossCoreSetFlag<2, PIPE_MTE3>(WEIGHTS_READY);
    }
  }

 private:
  Shape s;
  TPipe pipe;
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;
};

extern "C" __global__ __aicore__ void attend(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR out, GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  int n = t.n, block = ASCEND_IS_AIC ? GetBlockIdx() : GetBlockIdx() / 2;
  Shape s;
  s.n = n, s.mutant = t.mutant;
  s.q.SetGlobalBuffer((__gm__ half*)q + block * n * D, n * D), s.k.SetGlobalBuffer((__gm__ half*)k + block * n * D, n * D);
  s.v.SetGlobalBuffer((__gm__ half*)v + block * n * D, n * D), s.out.SetGlobalBuffer((__gm__ float*)out + block * n * D, n * D);
  GM_ADDR mine = GetUserWorkspace(workspace) + block * ROWS * n * 6;
  s.scores.SetGlobalBuffer((__gm__ float*)mine, ROWS * n), s.weights.SetGlobalBuffer((__gm__ half*)(mine + ROWS * n * 4), ROWS * n);
  if ASCEND_IS_AIC Cube(s).run();
  if ASCEND_IS_AIV Vector(s).run();
}

// Both kinds of cores leave a number, all meet, everybody sees all numbers.
extern "C" __global__ __aicore__ void meet_all(GM_ADDR out, GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  GlobalTensor<int32_t> shared, result;
  int64_t cores = GetBlockNum() * 3, me = ASCEND_IS_AIC ? GetBlockIdx() : GetBlockNum() + GetBlockIdx();
  shared.SetGlobalBuffer((__gm__ int32_t*)workspace, cores), result.SetGlobalBuffer((__gm__ int32_t*)out, cores);
  shared(me) = (int32_t)me + 1;
  if (t.mutant) SyncAll<true>();
  else SyncAll<false>();
  int32_t sum = 0;
  for (int64_t i = 0; i < cores; i++) sum += shared(i);
  result(me) = sum;
}
