// y = fill, then y[index[t]] = values[t], rows of bytes. Where every place has a row nothing is filled.
template <class Tiling>
__aicore__ inline void Run(GM_ADDR values, GM_ADDR index, GM_ADDR batch, GM_ADDR length, GM_ADDR fill, GM_ADDR y, GM_ADDR workspace,
                           const Tiling& t) {
  TPipe pipe;
  Numbers<int64_t> places;
  Rows rows;
  Fill filling;
  if (t.tokens < t.places) {
    filling.Init(pipe, fill, t.item, t.fill);
    filling.Write(y, 0, t.places * t.row_bytes);
    SyncAll();
  }
  places.Init(pipe, index, t.tokens);
  rows.Init(pipe, values, t.tokens, y, t.places, t);
  rows.Scatter(t.tokens, places);
}
