// Rows of tokens in float32 in the unified buffer: to and from it, their sums, and what is the same for a row or a column.
//
// A tile's rows stand `stride` numbers apart, a multiple of 8. Instructions go down the rows, 64 columns at a time, where
// the distance between two rows is one that a repeat can have, and along each row where it is not.
constexpr int64_t LANES = 64, FARTHEST = 255 * 8, REDUCED = 256;

__aicore__ inline void Done() { PipeBarrier<PIPE_V>(); }

template <class T> __aicore__ inline void Widen(const LocalTensor<float>& to, const LocalTensor<T>& from, int64_t n) {
  if constexpr (sizeof(T) == 4) Muls(to, from, 1.0f, n);
  else Cast(to, from, RoundMode::CAST_NONE, n);
  Done();
}
template <class T> __aicore__ inline void Narrow(const LocalTensor<T>& to, const LocalTensor<float>& from, int64_t n) {
  if constexpr (sizeof(T) == 4) Muls(to, from, 1.0f, n);
  else Cast(to, from, RoundMode::CAST_RINT, n);
  Done();
}

// A part of some rows: `n` columns of `rows` rows, in the unified buffer at multiples of `stride`.
struct Tile {
  int64_t row, rows, column, n, stride;
  __aicore__ inline int64_t Numbers() const { return rows * stride; }
};
template <class T> __aicore__ inline Tile TileOf(int64_t row, int64_t rows, int64_t column, int64_t n) {
  return {row, rows, column, n, RoundUp(n, 32 / (int64_t)sizeof(T))};
}

// Tiles of T that come in and go out, two of each in turn.
template <class T> class Passage {
 public:
  __aicore__ inline void Init(TPipe& pipe, int64_t bytes) {
    pipe.InitBuffer(in, 2, bytes);
    pipe.InitBuffer(out, 2, bytes);
  }
  __aicore__ inline void Load(const LocalTensor<float>& to, const GlobalTensor<T>& from, const Tile& tile, int64_t features) {
    LocalTensor<T> local = in.template AllocTensor<T>();
    CopyIn(local, from[tile.row * features + tile.column], tile.rows, tile.n * sizeof(T), (features - tile.n) * sizeof(T));
    in.EnQue(local);
    local = in.template DeQue<T>();
    Widen(to, local, tile.Numbers());
    in.FreeTensor(local);
  }
  __aicore__ inline void Store(const GlobalTensor<T>& to, const LocalTensor<float>& from, const Tile& tile, int64_t features) {
    LocalTensor<T> local = out.template AllocTensor<T>();
    Narrow(local, from, tile.Numbers());
    out.EnQue(local);
    local = out.template DeQue<T>();
    CopyOut(to[tile.row * features + tile.column], local, tile.rows, tile.n * sizeof(T), (features - tile.n) * sizeof(T));
    out.FreeTensor(local);
  }
  // `n` numbers in float32, which the buffers have room for.
  __aicore__ inline void AddTo(const LocalTensor<float>& sum, const GlobalTensor<float>& from, int64_t n) {
    LocalTensor<float> local = in.template AllocTensor<float>();
    CopyIn(local, from, 1, n * sizeof(float), 0);
    in.EnQue(local);
    local = in.template DeQue<float>();
    Add(sum, sum, local, n);
    Done();
    in.FreeTensor(local);
  }
  __aicore__ inline void Keep(const GlobalTensor<float>& to, const LocalTensor<float>& from, int64_t n) {
    LocalTensor<float> local = out.template AllocTensor<float>();
    Muls(local, from, 1.0f, n);
    Done();
    out.EnQue(local);
    local = out.template DeQue<float>();
    CopyOut(to, local, 1, n * sizeof(float), 0);
    out.FreeTensor(local);
  }

 private:
  TQue<TPosition::VECIN, 1> in;
  TQue<TPosition::VECOUT, 1> out;
};

enum class Along { ROWS, COLUMNS };  // a number a row, each filling a block; a number a column
enum class Sum { ADD, SUB, MUL };

template <Sum sum>
__aicore__ inline void Instruction(const LocalTensor<float>& x, const LocalTensor<float>& y, int64_t lanes, int64_t repeats,
                                   const BinaryRepeatParams& how) {
  if constexpr (sum == Sum::ADD) Add(x, x, y, (uint64_t)lanes, repeats, how);
  else if constexpr (sum == Sum::SUB) Sub(x, x, y, (uint64_t)lanes, repeats, how);
  else Mul(x, x, y, (uint64_t)lanes, repeats, how);
}
// x[r, c] (+, -, *)= y[r], or y[c].
template <Sum sum, Along along>
__aicore__ inline void Apply(const LocalTensor<float>& x, const LocalTensor<float>& y, const Tile& tile) {
  constexpr bool BY_ROW = along == Along::ROWS;
  constexpr uint8_t BLOCK = BY_ROW ? 0 : 1;
  if (tile.stride <= FARTHEST) {
    uint8_t far = tile.stride / 8;
    for (int64_t c = 0; c < tile.n; c += LANES)
      Instruction<sum>(x[c], BY_ROW ? y : y[c], Least(LANES, tile.n - c), tile.rows, {1, 1, BLOCK, far, far, (uint8_t)(BY_ROW ? 1 : 0)});
  } else {
    int64_t whole = tile.n / LANES, at = whole * LANES;
    for (int64_t r = 0; r < tile.rows; r++) {
      LocalTensor<float> row = x[r * tile.stride];
      if (whole) Instruction<sum>(row, BY_ROW ? y[r * 8] : y, LANES, whole, {1, 1, BLOCK, 8, 8, (uint8_t)(BY_ROW ? 0 : 8)});
      if (at < tile.n) Instruction<sum>(row[at], BY_ROW ? y[r * 8] : y[at], tile.n - at, 1, {1, 1, BLOCK, 8, 8, 8});
    }
  }
  Done();
}

// x[r, c] (+, -, *)= y[r, c], of tiles of the same rows and columns whose rows stand differently far apart.
template <Sum sum>
__aicore__ inline void Pairwise(const LocalTensor<float>& x, const Tile& tile, const LocalTensor<float>& y, const Tile& other) {
  if (Most(tile.stride, other.stride) <= FARTHEST) {
    uint8_t far = tile.stride / 8, others = other.stride / 8;
    for (int64_t c = 0; c < tile.n; c += LANES)
      Instruction<sum>(x[c], y[c], Least(LANES, tile.n - c), tile.rows, {1, 1, 1, far, far, others});
  } else {
    int64_t whole = tile.n / LANES, at = whole * LANES;
    for (int64_t r = 0; r < tile.rows; r++) {
      LocalTensor<float> row = x[r * tile.stride], with = y[r * other.stride];
      if (whole) Instruction<sum>(row, with, LANES, whole, {1, 1, 1, 8, 8, 8});
      if (at < tile.n) Instruction<sum>(row[at], with[at], tile.n - at, 1, {1, 1, 1, 8, 8, 8});
    }
  }
  Done();
}

// totals[r] += the sum of row r. `lanes`: 64 numbers a row and REDUCED more; `part`: a number a row.
__aicore__ inline void AddRowSums(const LocalTensor<float>& totals, const LocalTensor<float>& x, const LocalTensor<float>& lanes,
                                  const LocalTensor<float>& part, const Tile& tile) {
  if (tile.stride <= FARTHEST) {
    Duplicate(lanes, 0.0f, tile.rows * LANES);
    Done();
    for (int64_t c = 0; c < tile.n; c += LANES) {
      Add(lanes, lanes, x[c], (uint64_t)Least(LANES, tile.n - c), tile.rows, {1, 1, 1, 8, 8, (uint8_t)(tile.stride / 8)});
      Done();
    }
    WholeReduceSum(part, lanes, (uint64_t)LANES, tile.rows, 1, 1, 8);
  } else {
    for (int64_t r = 0; r < tile.rows; r++) {
      ReduceSum(part[r], x[r * tile.stride], lanes, tile.n);
      Done();
    }
  }
  Done();
  Add(totals, totals, part, tile.rows);
  Done();
}

// The sum over the rows, in the first of them: the second half of the rows onto the first, until one is left.
__aicore__ inline void FoldRows(const LocalTensor<float>& x, const Tile& tile) {
  for (int64_t rows = tile.rows, half_of_them; rows > 1; rows -= half_of_them) {
    half_of_them = rows / 2;
    Add(x, x, x[(rows - half_of_them) * tile.stride], half_of_them * tile.stride);
    Done();
  }
}
