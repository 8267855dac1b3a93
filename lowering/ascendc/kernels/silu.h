// The parts of rows, one behind the other: every block takes its rows of each part, a tile at a time.
constexpr int64_t PARTS = 4;

template <class T, class Tiling, class Piece> __aicore__ inline void ForParts(const Tiling& t, Piece& piece) {
  const int64_t widths[PARTS] = {t.u_width, t.v_width, t.q_width, t.k_width};
  Share mine = ShareOf(t.rows, GetBlockIdx(), GetBlockNum());
  for (int64_t part = 0, first = 0; part < PARTS; first += widths[part++])
    for (int64_t row = mine.begin, rows; row < mine.end; row += rows) {
      rows = Least(t.tile, mine.end - row);
      for (int64_t column = 0; column < widths[part]; column += t.width) {
        int64_t n = Least(t.width, widths[part] - column);
        piece(part, widths[part], TileOf<T>(row, rows, column, n), TileOf<T>(row, rows, first + column, n));
      }
    }
}
