// z = exp(x) + x with flags in place of queues. Each mutant breaks one rule; 0 breaks none.
#include "kernel_operator.h"
using namespace AscendC;

enum Mutant {
  NOTHING, NO_IN_FLAG, NO_OUT_FLAG, NO_RETURN_FLAG, WRONG_ID, ID_RANGE, TWICE, WAIT_ALONE, SET_ALONE, NO_BARRIER, NO_SCALAR_FLAG,
  COPIES_OVERLAP, SCALAR_BARRIER, EVENTS_EXHAUSTED, RETURN_TOO_EARLY, SCALAR_STORE,
};

extern "C" __global__ __aicore__ void exp_add(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  int m = t.mutant;
  TPipe pipe;
  TBuf<TPosition::VECCALC> in, out;
  pipe.InitBuffer(in, 512);
  pipe.InitBuffer(out, 512);
  GlobalTensor<float> gx, gz;
  gx.SetGlobalBuffer((__gm__ float*)x, t.n);
  gz.SetGlobalBuffer((__gm__ float*)z, t.n);
  LocalTensor<float> a = in.Get<float>(), b = out.Get<float>();
  int32_t id = pipe.AllocEventID<HardEvent::MTE2_V>();
  if (m == EVENTS_EXHAUSTED)
    for (int i = 0; i < 8; i++) pipe.AllocEventID<HardEvent::MTE2_V>();
  for (int64_t i = 0; i < t.n; i += 128) {
    if (i && m != NO_RETURN_FLAG) WaitFlag<HardEvent::MTE3_V>(EVENT_ID1), WaitFlag<HardEvent::V_MTE2>(EVENT_ID2);
    DataCopy(a, gx[i], 128);
    if (m == COPIES_OVERLAP) DataCopy(a[64], gx[i], 64);
    if (m != NO_IN_FLAG && m != WAIT_ALONE) SetFlag<HardEvent::MTE2_V>(m == ID_RANGE ? 8 : id);
    if (m == TWICE) SetFlag<HardEvent::MTE2_V>(id);
    if (m != NO_IN_FLAG) WaitFlag<HardEvent::MTE2_V>(m == WRONG_ID ? id + 1 : id);
    Exp(b, a, 128);
    if (m != NO_BARRIER) PipeBarrier<PIPE_V>();
    if (m == SCALAR_BARRIER) PipeBarrier<PIPE_S>();
    Add(b, b, a, 128);
    if (m == NO_SCALAR_FLAG) b.SetValue(0, b.GetValue(0));
    if (m == SCALAR_STORE) SetFlag<HardEvent::V_S>(EVENT_ID0), WaitFlag<HardEvent::V_S>(EVENT_ID0), b.SetValue(0, b.GetValue(0));
    SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
    if (m != NO_OUT_FLAG) WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
    if (m == RETURN_TOO_EARLY) SetFlag<HardEvent::MTE3_V>(EVENT_ID1);
    DataCopy(gz[i], b, 128);
    bool last = i + 128 >= t.n;
    if (!last && m != NO_RETURN_FLAG && m != RETURN_TOO_EARLY) SetFlag<HardEvent::MTE3_V>(EVENT_ID1);
    if (!last && m != NO_RETURN_FLAG) SetFlag<HardEvent::V_MTE2>(EVENT_ID2);
  }
  if (m == SET_ALONE) SetFlag<HardEvent::MTE2_V>(EVENT_ID3);
  pipe.ReleaseEventID<HardEvent::MTE2_V>(id);
}

// Sums of blocks of 64: the scalar unit waits for the vector unit, and so the next copy, which it issues later, does too.
extern "C" __global__ __aicore__ void block_sums(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  TPipe pipe;
  TBuf<TPosition::VECCALC> in, out;
  pipe.InitBuffer(in, 256);
  pipe.InitBuffer(out, 32);
  GlobalTensor<float> gx, gz;
  gx.SetGlobalBuffer((__gm__ float*)x, t.n);
  gz.SetGlobalBuffer((__gm__ float*)z, t.n / 64);
  LocalTensor<float> a = in.Get<float>(), b = out.Get<float>();
  for (int64_t i = 0; i < t.n / 64; i++) {
    DataCopy(a, gx[i * 64], 64);
    SetFlag<HardEvent::MTE2_V>(EVENT_ID0), WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
    WholeReduceSum(b, a, 64, 1, 1, 1, 8);
    if (t.mutant != NO_SCALAR_FLAG) SetFlag<HardEvent::V_S>(EVENT_ID0), WaitFlag<HardEvent::V_S>(EVENT_ID0);
    gz(i) = t.mutant ? 0.0f : b.GetValue(0);
    SetFlag<HardEvent::S_V>(EVENT_ID0), WaitFlag<HardEvent::S_V>(EVENT_ID0);
  }
}
