// y[r] = values[b] for the rows r of sequence b, zero behind the last sequence, rows of bytes.

// The sequence of a row; rows are asked for in ascending order, or tile by tile.
class Sequence {
 public:
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR numbers, int64_t count) {
    offsets.Init(pipe, numbers, count);
    sequences = count - 1;
  }
  __aicore__ inline int64_t Last() { return offsets(sequences); }
  __aicore__ inline int64_t operator()(int64_t row) {
    if (row < from) b = Most(offsets.LowerBound(row + 1), 1) - 1;
    from = row;
    while (offsets(b + 1) <= row) b++;
    return b;
  }

 private:
  Numbers<int64_t> offsets;
  int64_t sequences = 0, b = 0, from = INT64_MAX;
};

template <class Tiling>
__aicore__ inline void Run(GM_ADDR values, GM_ADDR offsets, GM_ADDR total, GM_ADDR y, GM_ADDR workspace, const Tiling& t) {
  TPipe pipe;
  Sequence sequence;
  Rows rows;
  Fill zeros;
  sequence.Init(pipe, offsets, t.sequences + 1);
  rows.Init(pipe, values, t.sequences, y, t.total, t);
  int64_t live = Least(sequence.Last(), t.total);
  rows.Gather(live, sequence);
  if (live == t.total) return;
  zeros.Init(pipe, nullptr, 1, t.fill);
  zeros.Write(y, live * t.row_bytes, t.total * t.row_bytes);
}
