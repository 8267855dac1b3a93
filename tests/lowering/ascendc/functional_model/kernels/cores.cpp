// Every core leaves a partial sum in the workspace; after SyncAll each writes the sum of all. Mutants break one rule.
#include "kernel_operator.h"
using namespace AscendC;

enum Mutant { NOTHING, NO_SYNC, ONE_MISSES, ATOMIC_UNWRITTEN, ATOMIC_UNORDERED, MODE_ONE, ONE_FLAG_MISSES, FLAG_RANGE };

extern "C" __global__ __aicore__ void sum(GM_ADDR x, GM_ADDR z, GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  GlobalTensor<int32_t> gx, gz, partial;
  gx.SetGlobalBuffer((__gm__ int32_t*)x, t.n);
  gz.SetGlobalBuffer((__gm__ int32_t*)z, GetBlockNum() * 8);
  partial.SetGlobalBuffer((__gm__ int32_t*)workspace, GetBlockNum() * 8);
  int32_t mine = 0;
  for (int64_t i = GetBlockIdx(); i < t.n; i += GetBlockNum()) mine += gx(i);
  partial(GetBlockIdx() * 8) = mine;
  if (t.mutant == ONE_MISSES && GetBlockIdx() == 1) return;
  if (t.mutant != NO_SYNC) SyncAll();
  int32_t all = 0;
  for (int64_t block = 0; block < GetBlockNum(); block++) all += partial(block * 8);
  for (int i = 0; i < 8; i++) gz(GetBlockIdx() * 8 + i) = all;
}

// z[j] = sum over cores of (core + 1): atomic additions onto what core 0 wrote before the flag.
extern "C" __global__ __aicore__ void count(GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  pipe.InitBuffer(buffer, 64);
  LocalTensor<float> zeros = buffer.Get<float>(), mine = zeros[8];
  GlobalTensor<float> gz;
  gz.SetGlobalBuffer((__gm__ float*)z, 8);
  Duplicate(zeros, 0.0f, 8);
  Duplicate(mine, (float)(GetBlockIdx() + 1), 8);
  SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
  WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
  if (GetBlockIdx() == 0 && t.mutant != ATOMIC_UNWRITTEN) DataCopy(gz, zeros, 8);
  PipeBarrier<PIPE_MTE3>();
  if (t.mutant == MODE_ONE) CrossCoreSetFlag<1, PIPE_MTE3>(3);
  if (t.mutant == FLAG_RANGE) CrossCoreSetFlag<0, PIPE_MTE3>(16);
  if (t.mutant == ONE_FLAG_MISSES && GetBlockIdx() == 1) return;
  if (t.mutant != ATOMIC_UNORDERED) {
    CrossCoreSetFlag<0, PIPE_MTE3>(3);
    CrossCoreWaitFlag(3);
  }
  SetAtomicAdd<float>();
  DataCopy(gz, mine, 8);
  SetAtomicNone();
}
