// What the vector kernels share: shares of work, order between pipes, numbers read in blocks.
#include "kernel_operator.h"

namespace gr {  // names of ours hide AscendC's
using namespace AscendC;

__aicore__ inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
__aicore__ inline int64_t Most(int64_t a, int64_t b) { return a < b ? b : a; }
__aicore__ inline int64_t RoundUp(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Share `me` of `count` shares of [0, all): they differ by one at most.
struct Share { int64_t begin, end; };
__aicore__ inline Share ShareOf(int64_t all, int64_t me, int64_t count) {
  int64_t each = all / count, more = all % count;
  return {me * each + Least(me, more), (me + 1) * each + Least(me + 1, more)};
}

// What the first pipe of `event` was given ends before its second goes on.
template <HardEvent event> __aicore__ inline void Order() {
  int32_t id = (int32_t)GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

// A boolean is stored as a byte.
template <class T> struct Stored { using type = T; };
template <> struct Stored<bool> { using type = uint8_t; };

// From global memory: `count` blocks of `bytes` bytes, `gap` bytes apart; each starts at a multiple of 32 bytes.
template <class T>
__aicore__ inline void CopyIn(const LocalTensor<T>& to, const GlobalTensor<T>& from, int64_t count, int64_t bytes, int64_t gap) {
  DataCopyExtParams how{(uint16_t)count, (uint32_t)bytes, (uint32_t)gap, 0, 0};
  DataCopyPadExtParams<T> pad;  // nothing is padded
  DataCopyPad(to, from, how, pad);
}
template <class T>
__aicore__ inline void CopyOut(const GlobalTensor<T>& to, const LocalTensor<T>& from, int64_t count, int64_t bytes, int64_t gap) {
  DataCopyExtParams how{(uint16_t)count, (uint32_t)bytes, 0, (uint32_t)gap, 0};
  DataCopyPad(to, from, how);
}

// Tiles of a mask as float32, by way of half: 0 and 1.
class Truths {
 public:
  TBuf<TPosition::VECCALC> halves, floats;
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR mask, int64_t count, int64_t tile) {
    source.SetGlobalBuffer((__gm__ uint8_t*)mask, count);
    pipe.InitBuffer(in, 2, tile);
    pipe.InitBuffer(halves, tile * sizeof(half));
    pipe.InitBuffer(floats, tile * sizeof(float));
  }
  __aicore__ inline LocalTensor<float> operator()(int64_t at, int64_t n) {
    LocalTensor<uint8_t> local = in.AllocTensor<uint8_t>();
    CopyIn(local, source[at], 1, n, 0);
    in.EnQue(local);
    local = in.DeQue<uint8_t>();
    LocalTensor<half> h = halves.Get<half>();
    LocalTensor<float> x = floats.Get<float>();
    Cast(h, local, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    in.FreeTensor(local);
    Cast(x, h, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    return x;
  }

 private:
  GlobalTensor<uint8_t> source;
  TQue<TPosition::VECIN, 1> in;
};

// Whole numbers of global memory for the scalar unit, which reads them in blocks through the unified buffer.
constexpr int64_t NUMBERS = 1024;
template <class T> class Numbers {
 public:
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR numbers, int64_t count) {
    global.SetGlobalBuffer((__gm__ T*)numbers, count);
    all = count;
    pipe.InitBuffer(buffer, NUMBERS * sizeof(T));
  }
  __aicore__ inline T operator()(int64_t i) {
    if (i < first || i >= first + held) Load(i);
    return buffer.template Get<T>().GetValue(i - first);
  }
  // The first i in [0, all) with a number that is not less than `least`, of numbers that ascend; `all` if there is none.
  __aicore__ inline int64_t LowerBound(T least) {
    int64_t low = 0, high = all;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (global.GetValue(middle) < least) low = middle + 1;
      else high = middle;
    }
    return low;
  }

 private:
  GlobalTensor<T> global;
  TBuf<TPosition::VECCALC> buffer;
  int64_t all = 0, first = 0, held = 0;
  __aicore__ inline void Load(int64_t i) {
    first = i, held = Least(NUMBERS, all - i);
    LocalTensor<T> local = buffer.template Get<T>();
    Order<HardEvent::S_MTE2>();
    CopyIn(local, global[i], 1, held * sizeof(T), 0);
    Order<HardEvent::MTE2_S>();
  }
};
