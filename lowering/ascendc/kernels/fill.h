// One element again and again: a buffer that is filled once and written wherever it is wanted.
class Fill {
 public:
  // `size` bytes, a multiple of 32; `item` divides 32. The element lies in global memory; without one it is zero.
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR element, int64_t item, int64_t size) {
    bytes = size;
    pipe.InitBuffer(buffer, size);
    LocalTensor<uint8_t> local = buffer.Get<uint8_t>();
    uint8_t value[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (element) {
      GlobalTensor<uint8_t> global;
      global.SetGlobalBuffer((__gm__ uint8_t*)element, item);
      CopyIn(local, global, 1, item, 0);
      Order<HardEvent::MTE2_S>();
      for (int64_t i = 0; i < item; i++) value[i] = local.GetValue(i);
    }
    for (int64_t i = 0; i < 32; i++) local.SetValue(i, value[i % item]);
    Order<HardEvent::S_V>();
    for (int64_t n = 32; n < size; n *= 2) {
      DataCopy(local[n], local, Least(n, size - n));
      PipeBarrier<PIPE_V>();
    }
    Order<HardEvent::V_MTE3>();
  }
  // This block's share of bytes [from, to) of a tensor that starts with a whole element.
  __aicore__ inline void Write(GM_ADDR tensor, int64_t from, int64_t to) {
    GlobalTensor<uint8_t> target;
    target.SetGlobalBuffer((__gm__ uint8_t*)tensor, to);
    Share mine = ShareOf((to - from + bytes - 1) / bytes, GetBlockIdx(), GetBlockNum());
    for (int64_t i = mine.begin; i < mine.end; i++) {
      int64_t at = from + i * bytes;
      CopyOut(target[at], Whole(), 1, Least(bytes, to - at), 0);
    }
  }
  __aicore__ inline LocalTensor<uint8_t> Whole() { return buffer.Get<uint8_t>(); }

 private:
  TBuf<TPosition::VECCALC> buffer;
  int64_t bytes = 0;
};
