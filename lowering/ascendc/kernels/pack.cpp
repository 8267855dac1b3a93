// y[t] = dense[index[t]], rows of bytes.
template <class Tiling> __aicore__ inline void Run(GM_ADDR dense, GM_ADDR index, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  Numbers<int64_t> places;
  Rows rows;
  places.Init(pipe, index, t.tokens);
  rows.Init(pipe, dense, t.places, y, t.tokens, t);
  rows.Gather(t.tokens, places);
}
