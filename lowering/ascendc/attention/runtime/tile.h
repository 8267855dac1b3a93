// Numbers, and the instructions of a tile of scores that no single AscendC call is: a row or a column beside a tile.
using namespace AscendC;

__aicore__ inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
__aicore__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
__aicore__ inline int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }
__aicore__ inline int64_t within(int64_t at, int64_t extent) { return most(least(at, extent - 1), 0); }
__aicore__ inline int64_t floordiv(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
__aicore__ inline int64_t truncdiv(int64_t a, int64_t b) { return a / b; }
__aicore__ inline int64_t mod(int64_t a, int64_t b) { return a - floordiv(a, b) * b; }
__aicore__ inline float from_bits(uint32_t bits) {
  union { uint32_t bits; float value; } both;
  both.bits = bits;
  return both.value;
}
template <HardEvent event> __aicore__ inline void order() {
  TEventID id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

// A tile: `rows` of `width` elements, of which `columns` are meant; width is a multiple of 64, so that every count is
// one that Compare takes. Rows and columns of a tile are padded to 8 and to `width`.
constexpr int FIRST_WORD = 3;  // of a block's extremes, behind its first tile, its end in tiles, and its end in keys
struct Tile {
  int32_t rows = 0, rows8 = 0, columns = 0, width = 0, n = 0;
  bool whole = false;  // do all pairs pass the masks that masks.py proves?
  bool inside_tables = false;  // do all pairs look values that heads share up inside their tables?
  GlobalTensor<int32_t> row_words, key_words;  // extremes of the tile's block of rows, behind its range of tiles; of its keys
  int32_t most_rows = 0, most_columns = 0, given_rows = 0;  // of a tile; of what a core keeps of an item
  int32_t first_row = 0, first_column = 0;                  // of the tile, in what the core keeps
  int32_t given_columns = 0;
  uint32_t tiles_at = 0, bits_at = 0, rows_at = 0, columns_at = 0, given_rows_at = 0, given_columns_at = 0, spread_at = 0, taken = 0;
  LocalTensor<float> arrived[16];                           // scores and gradients of weights, from the cube core; shared values; collected gradients
  TBuf<TPosition::VECCALC> memory;

  __aicore__ inline uint32_t take(int64_t bytes) {
    uint32_t at = taken;
    taken += (uint32_t)up(bytes, 32);
    return at;
  }
  __aicore__ inline void shape(int32_t rows_, int32_t columns_) {
    rows = rows_, columns = columns_;
    rows8 = (int32_t)up(rows, 8), width = (int32_t)up(columns, 64), n = rows * width;
  }
  template <class T> __aicore__ inline LocalTensor<T> piece(uint32_t at, int64_t count) { return memory.GetWithOffset<T>((uint32_t)count, at); }
  template <class T> __aicore__ inline LocalTensor<T> tile(int k) {
    return piece<T>(tiles_at + k * most_rows * most_columns * 4, most_rows * most_columns);
  }
  template <class T> __aicore__ inline LocalTensor<T> bits(int k) {
    int64_t bytes = up(most_rows * most_columns / 8, 32);
    return piece<T>(bits_at + k * bytes, bytes / sizeof(T));
  }
  template <class T> __aicore__ inline LocalTensor<T> row(int k) { return piece<T>(rows_at + k * most_rows * 4, most_rows); }
  template <class T> __aicore__ inline LocalTensor<T> column(int k) { return piece<T>(columns_at + k * most_columns * 4, most_columns); }
  template <class T> __aicore__ inline LocalTensor<T> kept_row(int k) { return piece<T>(given_rows_at + k * given_rows * 4, given_rows); }
  template <class T> __aicore__ inline LocalTensor<T> given_row(int k) { return kept_row<T>(k)[first_row]; }
  template <class T> __aicore__ inline LocalTensor<T> given_column(int k) {
    return piece<T>(given_columns_at + k * given_columns * 4, given_columns)[first_column];
  }
  template <class T> __aicore__ inline LocalTensor<T> given_tile(int k) { return arrived[k].ReinterpretCast<T>(); }
  template <class T> __aicore__ inline LocalTensor<T> spread() { return piece<T>(spread_at, most_rows * 8); }

  template <class T> __aicore__ inline int64_t at_tile(const LocalTensor<T>& tensor, int32_t y, int32_t x) { return tensor.GetValue(y * width + x); }
  template <class T> __aicore__ inline int64_t at_row(const LocalTensor<T>& tensor, int32_t y, int32_t) { return tensor.GetValue(y); }
  template <class T> __aicore__ inline int64_t at_column(const LocalTensor<T>& tensor, int32_t, int32_t x) { return tensor.GetValue(x); }

  // The least and the greatest of `values` and, where not `fresh`, of those before them.
  __aicore__ inline void extremes(const LocalTensor<int32_t>& words, int32_t at, const LocalTensor<int32_t>& values, int32_t count, bool fresh) {
    int32_t low = fresh ? values.GetValue(0) : words.GetValue(at), high = fresh ? low : words.GetValue(at + 1);
    for (int32_t y = 0; y < count; y++) low = (int32_t)least(low, values.GetValue(y)), high = (int32_t)most(high, values.GetValue(y));
    words.SetValue(at, low);
    words.SetValue(at + 1, high);
  }
  __aicore__ inline int64_t row_least(int k) { return row_words.GetValue(FIRST_WORD + 2 * k); }
  __aicore__ inline int64_t row_most(int k) { return row_words.GetValue(FIRST_WORD + 1 + 2 * k); }
  __aicore__ inline int64_t key_least(int k) { return key_words.GetValue(2 * k); }
  __aicore__ inline int64_t key_most(int k) { return key_words.GetValue(2 * k + 1); }
  // With the zeros that fill a tile's last columns.
  __aicore__ inline int64_t padded_least(int64_t x) { return columns == width ? x : least(x, 0); }
  __aicore__ inline int64_t padded_most(int64_t x) { return columns == width ? x : most(x, 0); }

  // Each element of a row fills a block of `spread`, which an instruction reads for all columns.
  template <class T> __aicore__ inline void spread_out(const LocalTensor<T>& y) {
    Brcb(spread<T>(), y, (uint8_t)(rows8 / 8), BrcbRepeatParams(1, 8));
  }
  template <class T> __aicore__ inline void SpreadRow(const LocalTensor<T>& dst, const LocalTensor<T>& y) {
    spread_out(y);
    for (int32_t c = 0; c < width; c += 64) Copy(dst[c], spread<T>(), (uint64_t)64, rows, CopyRepeatParams(1, 0, width / 8, 1));
  }
  template <class T> __aicore__ inline void SpreadColumn(const LocalTensor<T>& dst, const LocalTensor<T>& y) {
    for (int32_t c = 0; c < width; c += 64) Copy(dst[c], y[c], (uint64_t)64, rows, CopyRepeatParams(1, 1, width / 8, 0));
  }
#define BESIDE(Name)                                                                                                             \
  template <class T> __aicore__ inline void Name##Row(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y) { \
    spread_out(y);                                                                                                               \
    for (int32_t c = 0; c < width; c += 64)                                                                                      \
      Name(dst[c], x[c], spread<T>(), (uint64_t)64, rows, BinaryRepeatParams(1, 1, 0, width / 8, width / 8, 1));                 \
  }                                                                                                                              \
  template <class T> __aicore__ inline void Name##Column(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y) { \
    for (int32_t c = 0; c < width; c += 64)                                                                                      \
      Name(dst[c], x[c], y[c], (uint64_t)64, rows, BinaryRepeatParams(1, 1, 1, width / 8, width / 8, 0));                        \
  }                                                                                                                              \
  template <class T> __aicore__ inline void Name##RowColumn(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y) { \
    spread_out(x);                                                                                                               \
    for (int32_t c = 0; c < width; c += 64)                                                                                      \
      Name(dst[c], spread<T>(), y[c], (uint64_t)64, rows, BinaryRepeatParams(1, 0, 1, width / 8, 1, 0));                         \
  }                                                                                                                              \
  template <class T> __aicore__ inline void Name##ColumnRow(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y) { \
    spread_out(y);                                                                                                               \
    for (int32_t c = 0; c < width; c += 64)                                                                                      \
      Name(dst[c], x[c], spread<T>(), (uint64_t)64, rows, BinaryRepeatParams(1, 1, 0, width / 8, 0, 1));                         \
  }
  BESIDE(Add)
  BESIDE(Sub)
  BESIDE(Mul)
  BESIDE(Div)
  BESIDE(Max)
  BESIDE(Min)
#undef BESIDE
  // To half precision and back; `spread` is not in use then, and a piece of it is enough at a time.
  template <class T> __aicore__ inline void round_to(const LocalTensor<float>& dst, const LocalTensor<float>& src, int32_t count) {
    int32_t most = most_rows * 16;
    LocalTensor<T> narrow = piece<T>(spread_at, most);
    for (int32_t c = 0; c < count; c += most) {
      int32_t some = count - c < most ? count - c : most;
      Cast(narrow, src[c], RoundMode::CAST_RINT, some);
      Cast(dst[c], narrow, RoundMode::CAST_NONE, some);
    }
  }
  // What is not meant of the last 64 columns becomes `value`.
  __aicore__ inline void cut(const LocalTensor<float>& x, float value) {
    if (columns == width) return;
    uint64_t lanes[2] = {~(uint64_t)0 << (columns % 64), 0};
    Duplicate(x[width - 64], value, lanes, rows, 1, width / 8);
  }
  // Every row's sum, in which `x` is lost, and its largest element.
  __aicore__ inline void row_sums(const LocalTensor<float>& dst, const LocalTensor<float>& x) {
    for (int32_t c = 64; c < width; c += 64)
      Add(x, x, x[c], (uint64_t)64, rows, BinaryRepeatParams(1, 1, 1, width / 8, width / 8, width / 8));
    WholeReduceSum(dst, x, (uint64_t)64, rows, 1, 1, width / 8);
  }
  __aicore__ inline void largest_of_rows(const LocalTensor<float>& dst, const LocalTensor<float>& x, const LocalTensor<float>& work) {
    for (int32_t c = 64; c < width; c += 64)
      Max(work, c == 64 ? x : work, x[c], (uint64_t)64, rows, BinaryRepeatParams(1, 1, 1, width / 8, width / 8, width / 8));
    WholeReduceMax(dst, width == 64 ? x : work, (uint64_t)64, rows, 1, 1, width / 8, ReduceOrder::ORDER_ONLY_VALUE);
  }
};
