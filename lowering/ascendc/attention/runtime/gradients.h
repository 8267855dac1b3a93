// A vector core of the backward: from scores and gradients of weights (dP = dO Vt) to weights and gradients of scores, and
// the leaves' gradients on the way. Leaves that fit lie in the unified buffer until the end; all sums reach global memory
// by atomic additions in float32, in an order that differs from run to run, and become the outputs' dtypes at last.
class Vector : VectorCore {
 public:
  __aicore__ inline Vector(const Operands& o) : VectorCore(o) {}
  __aicore__ inline void run() {
    pipe.InitBuffer(x.memory, (uint32_t)o.scratch);
    if (PRODUCT) pipe.InitBuffer(in_s, 2, (uint32_t)(o.vr * o.vc * sizeof(ST)));
    pipe.InitBuffer(in_g, 2, (uint32_t)(o.vr * o.vc * sizeof(GT)));
    pipe.InitBuffer(x.out, 1, (uint32_t)(o.vr * o.vc * 4));
    if (COLLECTED) pipe.InitBuffer(in_c, 1, (uint32_t)(COLLECTED * o.vr * o.vc * 4));
    x.layout();
    clear();
    tiles(*this);
    x.flush_tables();
    SyncAll<false>();
    x.finish(fits && x.fits);
  }
  __aicore__ inline void step(const Step& s, int slot, int32_t from, int32_t rows) {
    x.slot = group * DEPTH + slot;
    for (int32_t y = 0; y < rows; y += (int32_t)o.vr) {
      for (int32_t c = 0; c < s.columns; c += (int32_t)o.vc) {
        part(s, rows, y, c);
        x.slot_row = from + y;
        tile(s, ((group * o.s_slots + s.slot) * o.r + from + y) * o.c + c);
      }
      if (s.gathered) x.finish_statistics(GRADIENTS_FROM == 0 ? INNER : -1);
    }
    x.first_row = x.first_column = 0;
    if (rows && s.phase == PHASES - 1) x.flush_columns(s.b, s.h, s.key0, s.columns);
    if (rows && s.closes) x.flush_rows(s.b, s.h, s.row0 + from, rows);
  }

 private:
  __aicore__ inline void tile(const Step& s, int64_t at) {
    LocalTensor<ST> scores;
    LocalTensor<GT> slopes;
    if (PRODUCT) scores = arrive<ST>(in_s, o.s[at]), x.arrived[0] = scores.template ReinterpretCast<float>();
    if (s.phase >= GRADIENTS_FROM) slopes = arrive<GT>(in_g, o.g[at]), x.arrived[1] = slopes.template ReinterpretCast<float>();
    begin_shared(s);
    bool alone = s.tile >= o.shared_tiles;  // no room to keep what the tile's heads collect
    x.first_head = s.first || alone, x.collected_at = kept(s) * COLLECTED * half() + within_half(), x.collected_step = half();
    if (s.phase == PHASES - 1) x.gradients();
    else if (s.phase == 0) x.statistics();
    else x.inner();
    end_shared();
    if (PRODUCT) in_s.FreeTensor(scores);
    if (s.phase >= GRADIENTS_FROM) in_g.FreeTensor(slopes);
    if (COLLECTED && s.phase == PHASES - 1 && (s.last || alone)) scatter();
  }
  // What the heads of a tile have collected reaches the tables.
  __aicore__ inline void scatter() {
    order<HardEvent::MTE3_MTE2>();  // collected
    LocalTensor<float> all = in_c.AllocTensor<float>();
    for (int k = 0; k < COLLECTED; k++) DataCopy(all[k * o.vr * o.vc], o.collected[x.collected_at + k * x.collected_step], x.n);
    in_c.EnQue(all);
    all = in_c.DeQue<float>();
    for (int k = 0; k < COLLECTED; k++) {
      x.arrived[2 + SHARED + k] = all[k * o.vr * o.vc];
      x.cut(x.arrived[2 + SHARED + k], 0.0f);
    }
    x.scatter();
    in_c.FreeTensor(all);
  }
  // Sums in global memory start at zero.
  __aicore__ inline void clear() {
    int64_t core = GetBlockIdx(), cores = o.cores * 2, most_at_once = o.vr * o.vc;
    Duplicate(x.tile<float>(0), 0.0f, (int32_t)most_at_once);
    order<HardEvent::V_MTE3>();
    int64_t end = o.sums_count * (core + 1) / cores;
    for (int64_t at = o.sums_count * core / cores; at < end; at += most_at_once)
      DataCopyPad(o.sums[at], x.tile<float>(0), DataCopyExtParams(1, (uint32_t)(least(end - at, most_at_once) * 4), 0, 0, 0));
    order<HardEvent::MTE3_V>();
    order<HardEvent::MTE3_S>();
  }
  TQue<TPosition::VECIN, 2> in_s, in_g;
  TQue<TPosition::VECIN, 1> in_c;
};
