// How many bytes of a mask are true: in each block's share, then before it and in all.
class Counts {
 public:
  template <class Tiling> __aicore__ inline void Init(TPipe& pipe, GM_ADDR mask, GM_ADDR workspace, const Tiling& t) {
    tile = t.tile, blocks = GetBlockNum(), me = GetBlockIdx();
    mine = ShareOf(t.elements, me, blocks);
    truths.Init(pipe, mask, t.elements, tile);
    counts.SetGlobalBuffer((__gm__ int64_t*)workspace, blocks * 4);  // 32 bytes a block
    pipe.InitBuffer(scratch, tile * sizeof(float));
    pipe.InitBuffer(number, blocks * 32);
    pipe.InitBuffer(result, 32);
  }
  // Counts of all blocks: `before` this one, and in `all`.
  __aicore__ inline void Meet() {
    int64_t own = 0;
    for (int64_t at = mine.begin; at < mine.end; at += tile) own += CountTile(at, Least(tile, mine.end - at));
    LocalTensor<int64_t> local = number.Get<int64_t>();
    local.SetValue(0, own);
    Order<HardEvent::S_MTE3>();
    CopyOut(counts[me * 4], local, 1, sizeof(int64_t), 0);
    SyncAll();
    CopyIn(local, counts, blocks, sizeof(int64_t), 24);
    Order<HardEvent::MTE2_S>();
    for (int64_t other = 0; other < blocks; other++) {
      int64_t count = local.GetValue(other * 4);
      before += other < me ? count : 0;
      all += count;
    }
  }
  Share mine;
  int64_t before = 0, all = 0;

 private:
  Truths truths;
  GlobalTensor<int64_t> counts;
  TBuf<TPosition::VECCALC> scratch, number, result;
  int64_t tile = 0, blocks = 0, me = 0;

  // Exact in float32: a tile is far below 2^24.
  __aicore__ inline int64_t CountTile(int64_t at, int64_t n) {
    LocalTensor<float> x = truths(at, n);
    ReduceSum(result.Get<float>(), x, scratch.Get<float>(), n);
    Order<HardEvent::V_S>();
    int64_t count = (int64_t)result.Get<float>().GetValue(0);
    Order<HardEvent::S_V>();
    return count;
  }
};
