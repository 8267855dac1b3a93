// y = how many elements are true.
template <class Tiling> __aicore__ inline void Run(GM_ADDR mask, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  Counts counts;
  TBuf<TPosition::VECCALC> buffer;
  GlobalTensor<int64_t> target;
  counts.Init(pipe, mask, workspace, t);
  pipe.InitBuffer(buffer, 32);
  counts.Meet();
  if (GetBlockIdx() != 0) return;
  target.SetGlobalBuffer((__gm__ int64_t*)y, 1);
  LocalTensor<int64_t> local = buffer.Get<int64_t>();
  local.SetValue(0, counts.all);
  Order<HardEvent::S_MTE3>();
  CopyOut(target, local, 1, sizeof(int64_t), 0);
}
