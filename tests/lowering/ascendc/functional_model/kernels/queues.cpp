// z = x + y through queues. Each mutant breaks one rule; 0 breaks none.
#include "kernel_operator.h"
using namespace AscendC;

enum Mutant {
  NOTHING, UB_OVERFLOW, LENGTH, ADDRESS, MISSING_FREE, MISSING_DEQUE, EMPTY_DEQUE, FULL_QUEUE, AFTER_FREE, GLOBAL_BOUNDS, LOCAL_BOUNDS,
  UNWRITTEN_LOCAL, INPUT_WRITTEN, OUTPUT_UNWRITTEN, MANY_BUFFERS, DOUBLE_FREE, FREE_QUEUED, OTHER_QUEUE, JUNK_OUT, BLOCKS_COLLIDE,
  NO_BUFFER_LEFT, STALE_BUFFER, UNWRITTEN_GLOBAL, JUNK_SCALAR, RAW_POINTER,
};

extern "C" __global__ __aicore__ void add(GM_ADDR x, GM_ADDR y, GM_ADDR z, GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  int m = t.mutant;
  TPipe pipe;
  TQue<TPosition::VECIN, 1> in_x, in_y, spare;
  TQue<TPosition::VECOUT, 1> out;
  pipe.InitBuffer(in_x, 2, 1024);
  pipe.InitBuffer(in_y, 2, m == UB_OVERFLOW ? 97000 : 1024);
  pipe.InitBuffer(out, 2, 1024);
  if (m == MANY_BUFFERS) pipe.InitBuffer(spare, 5, 32);
  GlobalTensor<float> gx, gy, gz, shared;
  gx.SetGlobalBuffer((__gm__ float*)x, t.n);
  gy.SetGlobalBuffer((__gm__ float*)y, t.n);
  gz.SetGlobalBuffer((__gm__ float*)z, t.n);
  shared.SetGlobalBuffer((__gm__ float*)workspace, 256);
  int64_t first = m == BLOCKS_COLLIDE ? 0 : GetBlockIdx() * 256;
  for (int64_t i = first; i < t.n; i += GetBlockNum() * 256) {
    uint32_t n = t.n - i < 256 ? t.n - i : 256;
    DataCopyExtParams piece(1, n * 4, 0, 0, 0);
    DataCopyPadExtParams<float> pad(false, 0, 0, 0);
    LocalTensor<float> a = in_x.AllocTensor<float>(), b = in_y.AllocTensor<float>();
    DataCopyPad(a, gx[m == GLOBAL_BOUNDS ? i + 1 : i], piece, pad);
    if (m == LENGTH) DataCopy(a, gx[i], 9);
    if (m == ADDRESS) DataCopy(a[1], gx[i], 8);
    if (m == UNWRITTEN_GLOBAL) DataCopy(b, shared, 256);
    else if (m != UNWRITTEN_LOCAL) DataCopyPad(b, gy[i], DataCopyExtParams(1, m == JUNK_OUT ? n * 4 - 4 : n * 4, 0, 0, 0), pad);
    if (m == JUNK_SCALAR && n < 256) t.n += (int64_t)a.GetValue(n);
    if (m != MISSING_DEQUE) {
      in_x.EnQue(a);
      if (m == FREE_QUEUED) in_x.FreeTensor(a);
      if (m == FULL_QUEUE) in_x.EnQue(in_x.AllocTensor<float>());
      a = in_x.DeQue<float>();
    }
    if (m != MISSING_DEQUE) {
      in_y.EnQue(b);
      b = in_y.DeQue<float>();
    }
    if (m == EMPTY_DEQUE) b = in_y.DeQue<float>();
    if (m == NO_BUFFER_LEFT) in_y.AllocTensor<float>(), in_y.AllocTensor<float>();
    LocalTensor<float> c = out.AllocTensor<float>();
    if (m == AFTER_FREE) in_x.FreeTensor(a);
    Add(c, a, b, m == LOCAL_BOUNDS ? 257 : (int)n);
    if (m == STALE_BUFFER) {
      in_x.FreeTensor(a);
      a = in_x.AllocTensor<float>();
      Add(c, a, b, (int)n);
    }
    out.EnQue(c);
    c = out.DeQue<float>();
    if (m == INPUT_WRITTEN) DataCopyPad(gx[i], c, piece);
    if (m != OUTPUT_UNWRITTEN || i == 0) DataCopyPad(gz[i], c, piece);
    if (m == OTHER_QUEUE) in_x.FreeTensor(b);
    in_x.FreeTensor(a);
    if (m == DOUBLE_FREE) in_x.FreeTensor(a);
    if (m == MISSING_FREE && i == 256) continue;
    in_y.FreeTensor(b);
    out.FreeTensor(c);
  }
  if (m == RAW_POINTER) *((volatile int64_t*)nullptr) = 0;
}
