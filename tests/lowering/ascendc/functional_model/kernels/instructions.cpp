// One instruction a case, as documented or with one constraint broken.
#include "kernel_operator.h"
using namespace AscendC;

enum Case {
  NOTHING, REPEATS, MASK, OVERLAP, BLOCK_STRIDE, COMPARE_LENGTH, COMPARE_TYPE, SELECT_SPACE, SELECT_MODE, CAST_PAIR, CAST_MODE, TYPE, GATHER_OFFSET,
  REDUCE_ADDRESS, PAD_BYTES, PAD_LENGTH, PAD_BLOCKS, COPY_PATH, WORKSPACE_SIZE, ATOMIC_TYPE, UNALIGNED_OPERAND, BUFFERS_64, TBUF_SIZE,
  MASK_REGISTER, FUSED_OVERLAP,
};

extern "C" __global__ __aicore__ void one(GM_ADDR x, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  int m = t.mutant;
  TPipe pipe;
  TBuf<TPosition::VECCALC> space, rest, tiny;
  pipe.InitBuffer(space, 4096);
  if (m == SELECT_SPACE) pipe.InitBuffer(rest, 196608 - 4096 - 8160);
  if (m == BUFFERS_64)
    for (int i = 0; i < 64; i++) pipe.InitBuffer(tiny, 32);
  LocalTensor<float> all = space.Get<float>(), a = all[0], b = all[256], c = all[512];
  LocalTensor<half> h = all[768].ReinterpretCast<half>();
  LocalTensor<uint8_t> bits = all[896].ReinterpretCast<uint8_t>();
  LocalTensor<uint32_t> offsets = all[960].ReinterpretCast<uint32_t>();
  GlobalTensor<float> gx, gz;
  gx.SetGlobalBuffer((__gm__ float*)x, 256);
  gz.SetGlobalBuffer((__gm__ float*)z, 256);
  DataCopy(a, gx, 256);
  SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
  WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
  Duplicate(b, 2.0f, 256);
  Adds(c, a, 0.0f, 256);
  if (m == REPEATS) Adds(c, a, 0.0f, 1, 256, UnaryRepeatParams(1, 1, 0, 0));
  if (m == MASK) Adds(c, a, 0.0f, 65, 1, UnaryRepeatParams());
  if (m == OVERLAP) Adds(c[64], c, 1.0f, 64, 2, UnaryRepeatParams());
  if (m == FUSED_OVERLAP) FusedMulAdd(c, a, b, 64, 2, BinaryRepeatParams(1, 1, 1, 0, 8, 8));
  if (m == BLOCK_STRIDE) Adds(c, a, 0.0f, 64, 1, UnaryRepeatParams(0, 1, 8, 8));
  Compare(bits, a, b, CMPMODE::LT, m == COMPARE_LENGTH ? 96 : 256);
  if (m == COMPARE_TYPE) Compare(bits, a.ReinterpretCast<int32_t>(), b.ReinterpretCast<int32_t>(), CMPMODE::LT, 64);
  Select(c, bits, a, m == SELECT_MODE ? 0.0f : 0.0f, m == SELECT_MODE ? SELMODE::VSEL_TENSOR_TENSOR_MODE : SELMODE::VSEL_TENSOR_SCALAR_MODE, 256);
  if (m == CAST_PAIR) Cast(h, a.ReinterpretCast<int64_t>(), RoundMode::CAST_RINT, 32);
  if (m == CAST_MODE) Cast(a.ReinterpretCast<int32_t>(), b, RoundMode::CAST_NONE, 64);
  if (m == TYPE) Exp(a.ReinterpretCast<int32_t>(), b.ReinterpretCast<int32_t>(), 64);
  CreateVecIndex(offsets.ReinterpretCast<int32_t>(), 0, 64);
  Muls(offsets.ReinterpretCast<int32_t>(), offsets.ReinterpretCast<int32_t>(), m == GATHER_OFFSET ? 3 : 4, 64);
  Gather(b, a, offsets, 0, 64);
  ReduceSum(m == REDUCE_ADDRESS ? b.ReinterpretCast<half>()[1].ReinterpretCast<float>() : b, a, b[64], 64);
  if (m == WORKSPACE_SIZE) pipe.InitBuffer(tiny, 32), ReduceMax(b, a, tiny.Get<float>(4), 256);
  DataCopyPadExtParams<float> pad(true, m == PAD_BYTES ? 9 : 0, 0, 1.0f);
  SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
  WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
  DataCopyPad(b, gx, DataCopyExtParams(m == PAD_BLOCKS ? 4096 : 1, m == PAD_LENGTH ? 30 : 28, 0, 0, 0), pad);
  if (m == COPY_PATH) DataCopy(a, gx.ReinterpretCast<float>(), DataCopyParams(4096, 1, 0, 0));
  if (m == ATOMIC_TYPE) SetAtomicAdd<uint16_t>();
  if (m == UNALIGNED_OPERAND) Adds(c, a[1], 0.0f, 8);
  if (m == TBUF_SIZE) space.Get<float>(1025);
  if (m == MASK_REGISTER) SetVectorMask<float>(0, 1), Adds<float, false>(c, a, 0.0f, 64);
  SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
  WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
  DataCopy(gz, c, 256);
}
