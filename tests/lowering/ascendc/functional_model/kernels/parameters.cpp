// One parameter a case: as documented in case 0, out of its range, of a wrong place or of a wrong kind in its own.
#include "kernel_operator.h"
using namespace AscendC;

enum Case {
  NOTHING, FOREIGN_ADDRESS, ODD_ADDRESS, NO_ADDRESS, NO_BUFFER, OFFSET, SIZE, BUFFER_OFFSET, PADDING_64, BLOCK_LENGTH, MANY_BLOCKS, NEGATIVE_COUNT,
  COPY_REPEAT, BRCB_STRIDE, GATHER_JUNK, HALF_INDEX, SELECT_TENSOR, FETCH_EVENT, ENQUEUED_TWICE, LEFT_IN_QUEUE, UNBUFFERED, GLOBAL_POSITION,
  BEYOND_ALLOCATION, ATOMIC_JUNK, SCALAR_PIPE, FLAG_MODE, WAIT_RANGE, NEVER_JOINED, SOME_CORES,
};

extern "C" __global__ __aicore__ void on_vector(GM_ADDR x, GM_ADDR z, GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  int m = t.mutant;
  uint8_t elsewhere[32];
  TPipe pipe;
  TQue<TPosition::VECIN, 2> queue;
  TBuf<TPosition::VECCALC> space, large;
  TBuf<TPosition::GM> global;
  if (m != UNBUFFERED) pipe.InitBuffer(space, 4096);
  if (m == GLOBAL_POSITION) pipe.InitBuffer(global, 32);
  pipe.InitBuffer(queue, 2, 64);
  LocalTensor<float> all = space.Get<float>(), a = all[0], b = all[256], c = all[512], none;
  LocalTensor<uint8_t> bits = all[768].ReinterpretCast<uint8_t>();
  LocalTensor<uint32_t> offsets = all[800].ReinterpretCast<uint32_t>();
  GlobalTensor<float> gx, gz;
  if (m != NO_ADDRESS) gx.SetGlobalBuffer((__gm__ float*)(m == FOREIGN_ADDRESS ? elsewhere : m == ODD_ADDRESS ? x + 2 : x), 256);
  gz.SetGlobalBuffer((__gm__ float*)z, m == BEYOND_ALLOCATION ? 512 : 256);
  DataCopy(m == NO_BUFFER ? none : a, gx, m == MANY_BLOCKS ? 524288 : 256);
  DataCopy(all[m == OFFSET ? 1025 : 1016], gx, 8);
  a.SetSize(m == SIZE ? 1025 : 1024);
  space.GetWithOffset<float>(8, m == BUFFER_OFFSET ? 16 : 32);
  DataCopyPad(b.ReinterpretCast<int64_t>(), gx.ReinterpretCast<int64_t>(), DataCopyExtParams(1, 8, 0, 0, 0),
              DataCopyPadExtParams<int64_t>(true, 0, 3, m == PADDING_64 ? 1 : 0));
  PipeBarrier<PIPE_MTE2>();
  DataCopyPad(b, gx, DataCopyExtParams(1, m == BLOCK_LENGTH ? 2097152 : 4, 0, 0, 0), DataCopyPadExtParams<float>(false, 0, 0, 0));
  PipeBarrier<PIPE_ALL>();
  Adds(c, a, 0.0f, m == NEGATIVE_COUNT ? -1 : 256);
  Copy(c, a, 64, 1, CopyRepeatParams(1, 1, 8, m == COPY_REPEAT ? 4096 : 4095));
  Brcb(c, a, 1, BrcbRepeatParams(m == BRCB_STRIDE ? 0 : 1, 8));
  Duplicate(offsets.ReinterpretCast<int32_t>(), 0, 8);
  if (m == GATHER_JUNK) Duplicate(b, 0.0f, 1);
  Gather(c, a, m == GATHER_JUNK ? b.ReinterpretCast<uint32_t>() : offsets, 0, 8);
  if (m == HALF_INDEX) {
    pipe.InitBuffer(large, 131104);
    LocalTensor<half> halves = large.Get<half>();
    Duplicate(halves, (half)1, 65552);
    ReduceMax(c.ReinterpretCast<half>(), halves, halves, 65537, true);
  }
  Compares(bits, a, 0.0f, CMPMODE::GE, 64);
  Select(c, bits, a, a, m == SELECT_TENSOR ? SELMODE::VSEL_TENSOR_SCALAR_MODE : SELMODE::VSEL_TENSOR_TENSOR_MODE, 64);
  for (int i = 0; i < (m == FETCH_EVENT ? 8 : 7); i++) pipe.AllocEventID<HardEvent::V_S>();
  pipe.FetchEventID(HardEvent::V_S);
  LocalTensor<float> piece = queue.AllocTensor<float>();
  queue.EnQue(piece);
  if (m == ENQUEUED_TWICE) queue.EnQue(piece);
  if (m != LEFT_IN_QUEUE) piece = queue.DeQue<float>(), queue.FreeTensor(piece);
  Adds(c, a, 0.0f, 256);
  PipeBarrier<PIPE_ALL>();
  DataCopy(gz, c, 256);
  PipeBarrier<PIPE_ALL>();
  if (m == BEYOND_ALLOCATION) DataCopy(gz[256], c, 8);
  SetAtomicAdd<float>();
  DataCopy(gz, m == ATOMIC_JUNK ? b : c, 8);
  SetAtomicNone();
  PipeBarrier<PIPE_ALL>();
  if (m == SCALAR_PIPE) CrossCoreSetFlag<0, PIPE_S>(1);
  if (m == WAIT_RANGE) CrossCoreWaitFlag(16);
  if (m == SOME_CORES) SyncAll(GlobalTensor<int32_t>(), c.ReinterpretCast<int32_t>(), 2);
}

extern "C" __global__ __aicore__ void flags(GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  if (t.mutant == FLAG_MODE && ASCEND_IS_AIV) CrossCoreSetFlag<1, PIPE_V>(1);
  if (t.mutant != NEVER_JOINED || GetBlockIdx() == 0) CrossCoreSetFlag<0, PIPE_MTE2>(1);
  if (t.mutant != NEVER_JOINED) CrossCoreWaitFlag(1);
}

enum CubeCase {
  CUBE_NOTHING, COPY_BETWEEN, COPY_OUT_OF_L0C, ADDRESS_MODE, LARGE, UNIT_FLAG, BIAS, ADDS_JUNK, FIX_TYPE, FIX_COLUMNS, FIX_ROWS, FIX_UNIT, FIX_STRIDE,
  FIX_MATRICES, FIX_ATOMIC_UNWRITTEN, FIX_BEYOND, LOAD_SOURCE, SYNC_VECTORS,
};

extern "C" __global__ __aicore__ void on_cube(GM_ADDR x, GM_ADDR z, GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  int m = t.mutant;
  TPipe pipe;
  TQueBind<TPosition::GM, TPosition::A1, 1> matrices;
  TBuf<TPosition::A2> left;
  TBuf<TPosition::B2> right;
  TBuf<TPosition::CO1> result;
  pipe.InitBuffer(matrices, 1, 2048), pipe.InitBuffer(left, 1024), pipe.InitBuffer(right, 512), pipe.InitBuffer(result, 2048);
  GlobalTensor<half> gx;
  GlobalTensor<float> gz, shared;
  gx.SetGlobalBuffer((__gm__ half*)x, 512), shared.SetGlobalBuffer((__gm__ float*)workspace, 512);
  gz.SetGlobalBuffer((__gm__ float*)z, m == FIX_BEYOND ? 1024 : 512);
  LocalTensor<half> a = matrices.AllocTensor<half>();
  DataCopy(a, gx, Nd2NzParams(1, 32, 16, 0, 16, 32, 1, 0));
  matrices.EnQue(a);
  a = matrices.DeQue<half>();
  if (m == COPY_BETWEEN) DataCopy(a[512], a, 16);
  LocalTensor<half> two = left.Get<half>(), one = right.Get<half>();
  LoadData(two, m == LOAD_SOURCE ? one : a, LoadData2DParams(0, 2, 1, 0, 0, false, m == ADDRESS_MODE));
  LoadData(one, a, LoadData2DParams(0, 1, 1, 0, 0, false, 0));
  PipeBarrier<PIPE_ALL>();
  LocalTensor<float> sums = result.Get<float>();
  MmadParams params;
  params.m = m == LARGE ? 4096 : m == ADDS_JUNK ? 20 : 32, params.n = 16, params.k = 16;
  params.unitFlag = m == UNIT_FLAG ? 3 : 0, params.cmatrixSource = m == BIAS;
  Mmad(sums, two, one, params);
  PipeBarrier<PIPE_M>();
  params.m = 32, params.cmatrixInitVal = false;
  Mmad(sums, two, one, params);
  PipeBarrier<PIPE_ALL>();
  FixpipeParamsV220 out(m == FIX_COLUMNS ? 4096 : 16, m == FIX_ROWS ? 8193 : 32, 32, m == FIX_STRIDE ? 0 : 16, false);
  out.unitFlag = m == FIX_UNIT ? 3 : 0, out.srcNdStride = m == FIX_MATRICES ? 513 : 0;
  if (m == FIX_TYPE) Fixpipe<int32_t, float, CFG_ROW_MAJOR>(gz.ReinterpretCast<int32_t>(), sums, out);
  if (m == COPY_OUT_OF_L0C) DataCopy(gz, sums, 16);
  if (m == FIX_ATOMIC_UNWRITTEN) SetAtomicAdd<float>(), Fixpipe<float, float, CFG_ROW_MAJOR>(shared, sums, out);
  Fixpipe<float, float, CFG_ROW_MAJOR>(m == FIX_BEYOND ? gz[512] : gz, sums, out);
  matrices.FreeTensor(a);
  if (m == SYNC_VECTORS) SyncAll<true>();
}
