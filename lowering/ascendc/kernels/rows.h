// Rows of bytes from one place in global memory to another. A tile holds `tile` rows, or, where a row is wider than
// a tile, `width` bytes of one row; two tiles take turns, so that one is read while the other is written.
class Rows {
 public:
  template <class Tiling>
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR from, int64_t rows_from, GM_ADDR to, int64_t rows_to, const Tiling& t) {
    row = t.row_bytes, width = t.width, parts = t.parts, tile = t.tile, stride = RoundUp(t.width, 32);
    source.SetGlobalBuffer((__gm__ uint8_t*)from, rows_from * row);
    target.SetGlobalBuffer((__gm__ uint8_t*)to, rows_to * row);
    if (row) pipe.InitBuffer(tiles, 2, tile * stride);
  }
  // Row i of the target is row `place(i)` of the source.
  template <class Place> __aicore__ inline void Gather(int64_t rows, Place& place) { Move<true>(rows, place); }
  // Row i of the source becomes row `place(i)` of the target.
  template <class Place> __aicore__ inline void Scatter(int64_t rows, Place& place) { Move<false>(rows, place); }

 private:
  TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> tiles;
  GlobalTensor<uint8_t> source, target;
  int64_t row = 0, width = 0, parts = 0, tile = 0, stride = 0;

  // Units of work are rows, or parts of rows where a row is wider than a tile (a tile then holds one of them).
  template <bool gather, class Place> __aicore__ inline void Move(int64_t rows, Place& place) {
    Share mine = ShareOf(rows * parts, GetBlockIdx(), GetBlockNum());
    for (int64_t unit = mine.begin, n; unit < mine.end; unit += n) {
      int64_t first = unit / parts, column = unit % parts * width, bytes = Least(width, row - column);
      n = Least(tile, mine.end - unit);
      LocalTensor<uint8_t> local = tiles.AllocTensor<uint8_t>();
      if (gather) Runs<true>(local, first, column, n, bytes, place);
      else CopyIn(local, source[first * row + column], n, bytes, row - bytes);
      tiles.EnQue(local);
      local = tiles.DeQue<uint8_t>();
      if (gather) CopyOut(target[first * row + column], local, n, bytes, row - bytes);
      else Runs<false>(local, first, column, n, bytes, place);
      tiles.FreeTensor(local);
    }
  }
  // The side of the tile whose rows lie anywhere: rows that are neighbours there travel together.
  template <bool in, class Place>
  __aicore__ inline void Runs(LocalTensor<uint8_t>& local, int64_t first, int64_t column, int64_t n, int64_t bytes, Place& place) {
    for (int64_t i = 0, run; i < n; i += run) {
      int64_t at = place(first + i);
      for (run = 1; i + run < n && place(first + i + run) == at + run;) run++;
      if (in) CopyIn(local[i * stride], source[at * row + column], run, bytes, row - bytes);
      else CopyOut(target[at * row + column], local[i * stride], run, bytes, row - bytes);
    }
  }
};
