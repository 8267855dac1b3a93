// One instruction on n elements, chosen by number: what it computes is compared with torch.
#include "kernel_operator.h"
using namespace AscendC;

#define TWO(Name) if (op == k++) return Name(c, a, b, n)
#define ONE(Name) if (op == k++) return Name(c, a, n)
#define ANY(Name) if (op == k++) return Name(c, a, (T)s, n)
template <class T> void apply(int op, LocalTensor<T> c, LocalTensor<T> a, LocalTensor<T> b, float s, int n) {
  int k = 0;
  TWO(Add); TWO(Sub); TWO(Mul); TWO(Div); TWO(Max); TWO(Min); TWO(And); TWO(Or);
  ONE(Exp); ONE(Ln); ONE(Abs); ONE(Sqrt); ONE(Rsqrt); ONE(Reciprocal); ONE(Relu); ONE(Not);
  ANY(Adds); ANY(Muls); ANY(Maxs); ANY(Mins); ANY(ShiftLeft); ANY(ShiftRight); ANY(LeakyRelu);
  if (op == k++) return Duplicate(c, (T)s, n);
  if (op == k++) return CreateVecIndex(c, (T)s, n);
  if (op == k++) return ArithProgression(c, (T)s, (T)2, n);
  if (op == k++) return Muls(c, a, (T)2, n), FusedMulAdd(c, a, b, n);
  refuse("no instruction ", op);
}
template <class T> void instruction(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffers[3];
  for (auto& buffer : buffers) pipe.InitBuffer(buffer, t.n * sizeof(T));
  LocalTensor<T> a = buffers[0].template Get<T>(), b = buffers[1].template Get<T>(), c = buffers[2].template Get<T>();
  GlobalTensor<T> gx, gy, gz;
  gx.SetGlobalBuffer((__gm__ T*)x, t.n), gy.SetGlobalBuffer((__gm__ T*)y, t.n), gz.SetGlobalBuffer((__gm__ T*)z, t.n);
  DataCopy(a, gx, t.n);
  DataCopy(b, gy, t.n);
  PipeBarrier<PIPE_ALL>();
  apply<T>(t.op, c, a, b, t.scalar, t.n);
  PipeBarrier<PIPE_ALL>();
  DataCopy(gz, c, t.n);
}
extern "C" __global__ __aicore__ void on_float(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR tiling) { instruction<float>(x, y, z, tiling); }
extern "C" __global__ __aicore__ void on_half(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR tiling) { instruction<half>(x, y, z, tiling); }
extern "C" __global__ __aicore__ void on_int32(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR tiling) { instruction<int32_t>(x, y, z, tiling); }
extern "C" __global__ __aicore__ void on_int16(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR tiling) { instruction<int16_t>(x, y, z, tiling); }

template <class D, class S> void cast(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  TPipe pipe;
  TBuf<TPosition::VECCALC> source, result;
  pipe.InitBuffer(source, t.n * sizeof(S));
  pipe.InitBuffer(result, t.n * sizeof(D));
  LocalTensor<S> a = source.template Get<S>();
  LocalTensor<D> c = result.template Get<D>();
  GlobalTensor<S> gx;
  GlobalTensor<D> gz;
  gx.SetGlobalBuffer((__gm__ S*)x, t.n), gz.SetGlobalBuffer((__gm__ D*)z, t.n);
  DataCopy(a, gx, t.n);
  PipeBarrier<PIPE_ALL>();
  Cast(c, a, (RoundMode)t.op, t.n);
  PipeBarrier<PIPE_ALL>();
  DataCopy(gz, c, t.n);
}
#define CAST(name, D, S) extern "C" __global__ __aicore__ void name(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) { cast<D, S>(x, z, tiling); }
CAST(float_to_half, half, float)
CAST(float_to_bfloat16, bfloat16_t, float)
CAST(float_to_float, float, float)
CAST(float_to_int32, int32_t, float)
CAST(half_to_float, float, half)
CAST(bfloat16_to_float, float, bfloat16_t)
CAST(half_to_int8, int8_t, half)
CAST(int32_to_float, float, int32_t)
CAST(int64_to_float, float, int64_t)
CAST(int32_to_int64, int64_t, int32_t)

// Rows of results, 64 floats each: masks, strides, comparisons, reductions, moves.
extern "C" __global__ __aicore__ void shapes(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  TPipe pipe;
  TBuf<TPosition::VECCALC> source, result, scratch, flags;
  pipe.InitBuffer(source, 4096), pipe.InitBuffer(result, 12 * 256), pipe.InitBuffer(scratch, 4096), pipe.InitBuffer(flags, 256);
  LocalTensor<float> a = source.Get<float>(), c = result.Get<float>(), s = scratch.Get<float>();
  LocalTensor<uint8_t> bits = flags.Get<uint8_t>();
  GlobalTensor<float> gx, gz;
  gx.SetGlobalBuffer((__gm__ float*)x, 1024), gz.SetGlobalBuffer((__gm__ float*)z, 12 * 64);
  DataCopy(a, gx, 1024);
  PipeBarrier<PIPE_ALL>();
  Duplicate(c, -1.0f, 12 * 64);
  uint64_t odd[2] = {0xAAAAAAAAAAAAAAAA, 0};
  Adds(c, a, 0.0f, odd, 1, UnaryRepeatParams());                       // 0: odd lanes
  Adds(c[64], a, 0.0f, 16, 1, UnaryRepeatParams(2, 1, 8, 8));          // 1: every second block
  SetMaskCount();
  SetVectorMask<float>(0, 40);
  Adds<float, false>(c[128], a, 0.0f, MASK_PLACEHOLDER, 1, UnaryRepeatParams());  // 2: the first 40
  SetMaskNorm();
  ResetMask();
  Compares(bits, a, 0.5f, CMPMODE::GE, 64);
  Select(c[192], bits, a, a[64], SELMODE::VSEL_CMPMASK_SPR, 64);       // 3
  ReduceSum(c[256], a, s, 1000);                                       // 4: sum; maximum and its index; minimum
  ReduceMax(c[258], a, s, 1000, true);
  ReduceMin(c[260], a, s, 1000);
  WholeReduceSum(c[320], a, 64, 8, 1, 1, 8);                           // 5: sums of 8 repeats
  WholeReduceMax(c[384], a, 60, 8, 1, 1, 8);                           // 6: value, index of 8 repeats
  BlockReduceSum(c[448], a, 8, 64, 1, 1, 8);                           // 7: sums of 64 blocks
  Brcb(c[512], a, 1, BrcbRepeatParams(1, 8));                          // 8: 8 elements, a block each
  LocalTensor<int32_t> at = s[512].ReinterpretCast<int32_t>();
  ArithProgression(at, 63 * 4, -4, 64);
  Gather(c[576], a, at.ReinterpretCast<uint32_t>(), 0, 64);            // 9: reversed
  Copy(c[640], a, 64, 1, CopyRepeatParams(1, 0, 8, 8));                // 10: the first block eight times
  Add(c[704], a, c[704], 64, 4, BinaryRepeatParams(1, 1, 1, 0, 8, 0));  // 11: -1 + four repeats, one upon the other
  PipeBarrier<PIPE_ALL>();
  DataCopy(gz, c, 12 * 64);
}
extern "C" __global__ __aicore__ void transposed(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  TPipe pipe;
  TBuf<TPosition::VECCALC> source, result;
  pipe.InitBuffer(source, 512), pipe.InitBuffer(result, 512);
  LocalTensor<half> a = source.Get<half>(), c = result.Get<half>();
  GlobalTensor<half> gx, gz;
  gx.SetGlobalBuffer((__gm__ half*)x, 256), gz.SetGlobalBuffer((__gm__ half*)z, 256);
  DataCopy(a, gx, DataCopyParams(8, 1, 1, 1));  // even blocks, then odd ones
  DataCopy(a[16], gx[16], DataCopyParams(8, 1, 1, 1));
  PipeBarrier<PIPE_ALL>();
  Transpose(c, a);
  PipeBarrier<PIPE_ALL>();
  DataCopy(gz, c, 256);
}
// Rows of `width` elements out of a matrix and back into another, padded with 7 on the right.
extern "C" __global__ __aicore__ void padded(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  TPipe pipe;
  TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> rows;
  pipe.InitBuffer(rows, 1, 1024);
  GlobalTensor<half> gx, gz;
  gx.SetGlobalBuffer((__gm__ half*)x, 4 * t.n), gz.SetGlobalBuffer((__gm__ half*)z, 4 * 16);
  LocalTensor<half> a = rows.AllocTensor<half>();
  DataCopyPad(a, gx, DataCopyExtParams(4, 10 * 2, (t.n - 10) * 2, 0, 0), DataCopyPadExtParams<half>(true, 2, 4, (half)7));
  rows.EnQue(a);
  a = rows.DeQue<half>();
  DataCopyPad(gz, a, DataCopyExtParams(4, 16 * 2, 0, 0, 0));
  rows.FreeTensor(a);
}
