// y = the places of the true elements, ascending: those after the first `total` are left out, entries that no element
// fills are 0. Blocks count their shares, meet, and each writes its places behind those of the blocks before it. The
// scalar unit reads eight bytes of the mask at once and looks into them only where one is true.
template <class Tiling> class TruePlaces {
 public:
  __aicore__ inline TruePlaces(TPipe& pipe, GM_ADDR mask, GM_ADDR y, GM_ADDR workspace, const Tiling& tiling) : t(tiling) {
    counts.Init(pipe, mask, workspace, t);
    source.SetGlobalBuffer((__gm__ uint8_t*)mask, t.elements);
    target.SetGlobalBuffer((__gm__ int64_t*)y, t.total);
    pipe.InitBuffer(in, 2, t.tile);
    pipe.InitBuffer(out, 2, t.tile);
  }
  __aicore__ inline void Process() {
    counts.Meet();
    next = counts.before;
    for (int64_t at = counts.mine.begin; at < counts.mine.end && next < t.total; at += t.tile)
      Find(at, Least(t.tile, counts.mine.end - at));
    if (held) Flush();
    if (GetBlockIdx() == GetBlockNum() - 1) Zeros();
  }

 private:
  const Tiling& t;
  Counts counts;
  GlobalTensor<uint8_t> source;
  GlobalTensor<int64_t> target;
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;
  LocalTensor<int64_t> found;
  int64_t next = 0, held = 0;  // `held` entries are in `found`; the first of them is entry `next` of y

  __aicore__ inline void Find(int64_t at, int64_t n) {
    LocalTensor<uint8_t> local = in.AllocTensor<uint8_t>();
    DataCopyExtParams how{1, (uint32_t)n, 0, 0, 0};
    DataCopyPadExtParams<uint8_t> pad{true, 0, (uint8_t)(RoundUp(n, 32) - n), 0};
    DataCopyPad(local, source[at], how, pad);
    in.EnQue(local);
    local = in.DeQue<uint8_t>();
    Order<HardEvent::V_S>();
    LocalTensor<int64_t> words = local.ReinterpretCast<int64_t>();
    for (int64_t word = 0; word < (n + 7) / 8; word++) {
      if (words.GetValue(word) == 0) continue;
      for (int64_t i = 0; i < 8; i++)
        if (local.GetValue(word * 8 + i)) Append(at + word * 8 + i);
    }
    Order<HardEvent::S_V>();
    in.FreeTensor(local);
  }
  __aicore__ inline void Append(int64_t place) {
    if (next + held >= t.total) return;
    if (!held) {
      found = out.AllocTensor<int64_t>();
      Order<HardEvent::V_S>();
    }
    found.SetValue(held++, place);
    if (held * (int64_t)sizeof(int64_t) == t.tile) Flush();
  }
  __aicore__ inline void Flush() {
    Order<HardEvent::S_V>();
    out.EnQue(found);
    found = out.DeQue<int64_t>();
    CopyOut(target[next], found, 1, held * sizeof(int64_t), 0);
    out.FreeTensor(found);
    next += held, held = 0;
  }
  __aicore__ inline void Zeros() {
    for (next = counts.all; next < t.total;) {
      found = out.AllocTensor<int64_t>();
      Duplicate(found.ReinterpretCast<int32_t>(), 0, t.tile / sizeof(int32_t));
      held = Least(t.tile / sizeof(int64_t), t.total - next);
      Flush();
    }
  }
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR mask, GM_ADDR count, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  TruePlaces<Tiling> kernel(pipe, mask, y, workspace, t);
  kernel.Process();
}
