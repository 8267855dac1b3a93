// Of the backward's Program: what leaves the vector core.
  TQue<TPosition::VECOUT, 1> out;
  int64_t slot = 0;      // of the workspace
  int32_t slot_row = 0;  // the tile's first row there

  // A tile to the cube core, in the dtype that it multiplies with.
  template <class T> __aicore__ inline void give(const GlobalTensor<T>& to, const LocalTensor<float>& tile_) {
    LocalTensor<T> w = out.AllocTensor<T>();
    if constexpr (sizeof(T) == 4) DataCopy(w, tile_, n);
    else Cast(w, tile_, RoundMode::CAST_RINT, n);
    out.EnQue(w);
    w = out.DeQue<T>();
    uint32_t bytes = (uint32_t)(columns * sizeof(T)), gap = (uint32_t)(width * sizeof(T) - up(bytes, 32)) / 32;
    DataCopyPad(to[(slot * o.r + slot_row) * o.c + first_column], w, DataCopyExtParams((uint16_t)rows, bytes, gap, (uint32_t)((o.c - columns) * sizeof(T)), 0));
    out.FreeTensor(w);
  }
  // In float32 also transposed, which the cube cannot.
  __aicore__ inline void turn(const GlobalTensor<float>& to, const LocalTensor<float>& tile_, const LocalTensor<float>& work,
                              const LocalTensor<int32_t>& places) {
    order<HardEvent::MTE3_V>();
    ArithProgression(places, (int32_t)0, width * 4, rows);
    for (int32_t c = 0; c < columns; c++) Gather(work[c * rows8], tile_, places.ReinterpretCast<uint32_t>(), (uint32_t)(c * 4), (uint32_t)rows);
    order<HardEvent::V_MTE3>();
    DataCopyPad(to[slot * o.r * o.c + first_column * o.r + slot_row], work,
                DataCopyExtParams((uint16_t)columns, (uint32_t)(rows * 4), 0, (uint32_t)((o.r - rows) * 4), 0));
    order<HardEvent::MTE3_V>();
  }
  __aicore__ inline void add_to_rows(int k, const LocalTensor<float>& x, const LocalTensor<float>& row_) {
    cut(x, 0.0f);
    Duplicate(row_, 0.0f, rows8);
    row_sums(row_, x);
    LocalTensor<float> sum = given_row<float>(k);
    Add(sum, sum, row_, rows8);
  }
  __aicore__ inline void add_to_columns(int k, const LocalTensor<float>& x) {
    LocalTensor<float> sum = given_column<float>(k);
    for (int32_t y = 0; y < rows; y++) Add(sum, sum, x[y * width], width);
  }
  // One element of a sum in global memory.
  __aicore__ inline void add_one(const GlobalTensor<float>& to, float value) {
    LocalTensor<float> cell = piece<float>(spread_at, 8);
    cell.SetValue(0, value);
    order<HardEvent::S_MTE3>();
    SetAtomicAdd<float>();
    DataCopyPad(to, cell, DataCopyExtParams(1, 4, 0, 0, 0));
    SetAtomicNone();
    order<HardEvent::MTE3_S>();
    order<HardEvent::MTE3_V>();
  }
  __aicore__ inline void add_many(const GlobalTensor<float>& to, const LocalTensor<float>& from, int64_t count) {
    order<HardEvent::V_MTE3>();
    order<HardEvent::S_MTE3>();
    SetAtomicAdd<float>();
    DataCopyPad(to, from, DataCopyExtParams(1, (uint32_t)(count * 4), 0, 0, 0));
    SetAtomicNone();
    order<HardEvent::MTE3_V>();
  }
  // Sums in the dtype of an output; every core a part.
  template <class T> __aicore__ inline void store(const GlobalTensor<T>& to, const GlobalTensor<float>& from, int64_t count, bool good) {
    int64_t core = GetBlockIdx(), cores = o.cores * 2, most_at_once = o.vr * o.vc, end = count * (core + 1) / cores;
    LocalTensor<float> wide = tile<float>(0);
    for (int64_t at = count * core / cores; at < end; at += most_at_once) {
      int32_t some = (int32_t)least(end - at, most_at_once);
      order<HardEvent::V_MTE2>();
      DataCopyPad(wide, from[at], DataCopyExtParams(1, (uint32_t)some * 4, 0, 0, 0),
                  DataCopyPadExtParams<float>(true, 0, (uint8_t)(up(some, 8) - some), 0.0f));
      order<HardEvent::MTE2_V>();
      if (!good) Duplicate(wide, from_bits(0x7fc00000u), some);
      LocalTensor<T> w = out.AllocTensor<T>();
      if constexpr (sizeof(T) == 4) DataCopy(w, wide, (uint32_t)up(some, 8));
      else Cast(w, wide, RoundMode::CAST_RINT, some);
      out.EnQue(w);
      w = out.DeQue<T>();
      DataCopyPad(to[at], w, DataCopyExtParams(1, (uint32_t)(some * sizeof(T)), 0, 0, 0));
      out.FreeTensor(w);
    }
  }
