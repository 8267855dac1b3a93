// Rows of a table in global memory that are added to in float32, each by one block alone.
//
// Groups of `group` rows belong to the blocks in turn, and only its owner adds to a row: nothing that two blocks do has
// an order to lose. Rows are added by the copy unit, one after the other: two that go to one row are separated by a
// barrier. Halves are added into a float32 copy of the table in the workspace and rounded once, at the end.
template <class Item, class Tiling> class OwnedRows {
 public:
  static constexpr bool FLOAT = sizeof(Item) == 4;
  static constexpr int64_t ROUNDED = 256;  // numbers
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR y, GM_ADDR workspace, const Tiling& tiling) {
    t = &tiling;
    target.SetGlobalBuffer((__gm__ Item*)y, t->rows * t->features);
    sums.SetGlobalBuffer((__gm__ float*)(FLOAT ? y : workspace), t->rows * t->features);
    zeros.Init(pipe, nullptr, 1, t->fill);
    if constexpr (!FLOAT) {
      pipe.InitBuffer(in, 2, ROUNDED * sizeof(float));
      pipe.InitBuffer(out, 2, ROUNDED * sizeof(Item));
    }
  }
  __aicore__ inline bool Mine(int64_t row) const { return row / t->group % GetBlockNum() == GetBlockIdx(); }
  // All of them begin at 0.
  __aicore__ inline void Clear() {
    ForMine<true>();
    PipeBarrier<PIPE_MTE3>();
  }
  // `n` columns of `count` rows, which stand `stride` numbers apart: row i is added to row `rows[i]`, one of this block's.
  __aicore__ inline void Add(const LocalTensor<float>& wide, const int64_t* rows, int64_t count, int64_t column, int64_t n, int64_t stride) {
    SetAtomicAdd<float>();
    for (int64_t i = 0, apart = 0; i < count; i++) {
      bool again = false;
      for (int64_t j = apart; j < i; j++) again = again || rows[j] == rows[i];
      if (again) {
        PipeBarrier<PIPE_MTE3>();
        apart = i;
      }
      CopyOut(sums[rows[i] * t->features + column], wide[i * stride], 1, n * sizeof(float), 0);
    }
    SetAtomicNone();
    PipeBarrier<PIPE_MTE3>();
  }
  __aicore__ inline void Finish() {
    if constexpr (!FLOAT) {
      Order<HardEvent::MTE3_MTE2>();
      ForMine<false>();
    }
  }

 private:
  const Tiling* t = nullptr;
  GlobalTensor<Item> target;
  GlobalTensor<float> sums;
  Fill zeros;
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;

  // Clear, or round, the rows of this block's groups.
  template <bool clear> __aicore__ inline void ForMine() {
    for (int64_t row = GetBlockIdx() * t->group; row < t->rows; row += GetBlockNum() * t->group) {
      int64_t end = Least(row + t->group, t->rows) * t->features, most = clear ? t->fill / (int64_t)sizeof(float) : ROUNDED;
      for (int64_t at = row * t->features; at < end; at += most) {
        int64_t n = Least(most, end - at);
        if constexpr (clear) CopyOut(sums[at], zeros.Whole().template ReinterpretCast<float>(), 1, n * sizeof(float), 0);
        else Round(at, n);
      }
    }
  }
  __aicore__ inline void Round(int64_t at, int64_t n) {
    LocalTensor<float> wide = in.template AllocTensor<float>();
    CopyIn(wide, sums[at], 1, n * sizeof(float), 0);
    in.EnQue(wide);
    wide = in.template DeQue<float>();
    LocalTensor<Item> local = out.template AllocTensor<Item>();
    Cast(local, wide, RoundMode::CAST_RINT, n);
    PipeBarrier<PIPE_V>();
    in.FreeTensor(wide);
    out.EnQue(local);
    local = out.template DeQue<Item>();
    CopyOut(target[at], local, 1, n * sizeof(Item), 0);
    out.FreeTensor(local);
  }
};
