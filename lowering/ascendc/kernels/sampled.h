// Pairs of a token and one of its samples, numbered token * samples + sample: their ids, and the rows that those name.
constexpr int64_t MOST = 128, NOWHERE = -1;  // rows of a tile; the number of a row that does not exist

__aicore__ inline float Real(int64_t bits) {  // the tiling's fields are whole numbers
  union { int32_t bits; float value; } both;
  both.bits = (int32_t)bits;
  return both.value;
}

// The ids of pairs for the scalar unit, which asks for them in ascending order. They are read in blocks through the unified
// buffer: one run of ids where each token has its own, a run a token where tokens share rows of ids.
template <class Whole, class Tiling> class Ids {
 public:
  static constexpr int64_t HELD = 512, RUNS = 32, UNIT = 32 / sizeof(Whole);
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR ids, GM_ADDR group, const Tiling& tiling) {
    t = &tiling;
    global.SetGlobalBuffer((__gm__ Whole*)ids, t->id_rows * t->samples);
    if (t->group_words) groups.Init(pipe, group, t->tokens * t->group_words);
    pipe.InitBuffer(buffer, (HELD + RUNS * UNIT) * sizeof(Whole));
  }
  // NOWHERE where the id is no row of the table, or the token's row of ids does not exist.
  __aicore__ inline int64_t operator()(int64_t pair) {
    if (pair != next || pair == end) Load(pair);
    if (!left) at = RoundUp(at, UNIT), left = t->samples;
    int64_t id = buffer.template Get<Whole>().GetValue(at);
    at++, left--, next = pair + 1;
    return id < 0 || id >= t->rows ? NOWHERE : id;
  }

 private:
  const Tiling* t = nullptr;
  GlobalTensor<Whole> global;
  Numbers<int32_t> groups;
  TBuf<TPosition::VECCALC> buffer;
  int64_t next = 0, end = 0, at = 0, left = 0;  // of the pair that is next: its place in the buffer, what is left of its run

  __aicore__ inline void Load(int64_t pair) {
    at = 0;
    Order<HardEvent::S_MTE2>();
    if (t->group_words) {
      LoadRuns(pair);
      return;
    }
    left = Least(HELD, t->tokens * t->samples - pair), end = pair + left;
    CopyIn(buffer.template Get<Whole>(), global[pair], 1, left * sizeof(Whole), 0);
    Order<HardEvent::MTE2_S>();
  }
  __aicore__ inline void LoadRuns(int64_t pair) {
    LocalTensor<Whole> local = buffer.template Get<Whole>();
    int64_t token = pair / t->samples, sample = pair % t->samples, place = 0, runs = 0, begins[RUNS], counts[RUNS];
    bool lost[RUNS];
    end = pair;
    while (token < t->tokens && runs < RUNS && (!runs || place + t->samples <= HELD)) {
      int64_t row = GroupOf(token++), count = Least(HELD, t->samples - sample);
      lost[runs] = row == NOWHERE, begins[runs] = place, counts[runs++] = count;
      if (row != NOWHERE) CopyIn(local[place], global[row * t->samples + sample], 1, count * sizeof(Whole), 0);
      place = RoundUp(place + count, UNIT), end += count, sample = 0;
    }
    left = counts[0];
    Order<HardEvent::MTE2_S>();
    for (int64_t run = 0; run < runs; run++)
      for (int64_t i = 0; lost[run] && i < counts[run]; i++) local.SetValue(begins[run] + i, NOWHERE);
  }
  // The row of ids that a token reads; whole numbers of 64 bits are two words, the lower one first.
  __aicore__ inline int64_t GroupOf(int64_t token) {
    int64_t row = groups(token * t->group_words);
    if (t->group_words == 2) row = ((int64_t)groups(token * 2 + 1) << 32) | (uint32_t)row;
    return row < 0 || row >= t->id_rows ? NOWHERE : row;
  }
};

// Rows of a tensor by their numbers, in float32 in the unified buffer. One that does not exist is a row of NaN: what is
// computed from it is NaN, and nothing outside the tensor is read.
template <class Item> class Picked {
 public:
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR from, int64_t rows, int64_t columns, int64_t room) {
    features = columns;
    source.SetGlobalBuffer((__gm__ Item*)from, rows * features);
    pipe.InitBuffer(in, 2, room * sizeof(Item));
    pipe.InitBuffer(wide, room * sizeof(float));
  }
  __aicore__ inline LocalTensor<float> operator()(const int64_t* numbers, const Tile& tile) {
    LocalTensor<Item> local = in.template AllocTensor<Item>();
    for (int64_t i = 0, run; i < tile.rows; i += run) {  // rows that are neighbours travel together
      for (run = 1; i + run < tile.rows && numbers[i] != NOWHERE && numbers[i + run] == numbers[i] + run;) run++;
      if (numbers[i] == NOWHERE) continue;
      CopyIn(local[i * tile.stride], source[numbers[i] * features + tile.column], run, tile.n * sizeof(Item),
             (features - tile.n) * sizeof(Item));
    }
    in.EnQue(local);
    local = in.template DeQue<Item>();
    for (int64_t i = 0; i < tile.rows; i++)  // these bits are NaN, as float32 and as two halves of either kind
      if (numbers[i] == NOWHERE)
        Duplicate(local[i * tile.stride].template ReinterpretCast<int32_t>(), 0x7FFFFFFF, tile.stride * sizeof(Item) / 4);
    Done();
    LocalTensor<float> to = wide.template Get<float>();
    Widen(to, local, tile.Numbers());
    in.FreeTensor(local);
    return to;
  }

 private:
  GlobalTensor<Item> source;
  TQue<TPosition::VECIN, 1> in;
  TBuf<TPosition::VECCALC> wide;
  int64_t features = 0;
};

// Numbers of the rows of a tile, `KINDS` for each: sums over their columns, and what is made of those.
constexpr int KINDS = 4;
class RowNumbers {
 public:
  __aicore__ inline void Init(TPipe& pipe, int64_t tile) {
    padded = RoundUp(tile, 8);
    pipe.InitBuffer(lanes, (tile * LANES + REDUCED) * sizeof(float));
    pipe.InitBuffer(numbers, (KINDS + 1) * padded * sizeof(float));
    pipe.InitBuffer(blocks, padded * 8 * sizeof(float));
  }
  __aicore__ inline LocalTensor<float> operator[](int k) { return numbers.Get<float>()[k * padded]; }
  __aicore__ inline void Clear(int k) {
    Duplicate((*this)[k], 0.0f, padded);
    Done();
  }
  __aicore__ inline void AddSums(int k, const LocalTensor<float>& x, const Tile& tile) {
    AddRowSums((*this)[k], x, lanes.Get<float>(), (*this)[KINDS], tile);
  }
  // Sums of squares become norms, of `least` or more.
  __aicore__ inline void Norms(int k, float least) {
    Sqrt((*this)[k], (*this)[k], padded);
    Done();
    Maxs((*this)[k], (*this)[k], least, padded);
    Done();
  }
  // x[r, c] *= number k of row r.
  __aicore__ inline void Scale(const LocalTensor<float>& x, int k, const Tile& tile) {
    Brcb(blocks.Get<float>(), (*this)[k], padded / 8, {1, 8});
    Done();
    Apply<Sum::MUL, Along::ROWS>(x, blocks.Get<float>(), tile);
  }
  int64_t padded = 0;

 private:
  TBuf<TPosition::VECCALC> lanes, numbers, blocks;
};
