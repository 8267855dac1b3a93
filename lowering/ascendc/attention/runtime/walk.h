// The order of work, the same on a cube core and on its two vector cores: items (a block of rows of one sequence and head)
// and in each item tiles of keys. Cores share the items by area: what a core has begins and ends at an equal part of all
// tiles, so that a causal sequence's short rows go to fewer cores than its long ones.
//
// The last tile of a block ends where its hull does.
//
// Where scores are needed in several phases they are made in the first one and stay in the workspace until the item ends,
// unless it has more tiles than there is room for. An item of one or two tiles has places that the next two items leave
// alone, since vector cores may still read them.
//
// The list of blocks is made on the device: sequence lengths are data there, and a host that reads them waits.
constexpr uint16_t SCORES = 1, WEIGHTS = 2;  // flags between the cores
constexpr int DEPTH = 3;                     // tiles under way: scores of t, weights of t - 1, outputs of t - 2
constexpr int SHORT = PHASES > 1 ? 2 : 0;    // tiles of an item that the next one would overtake

struct Step {
  int32_t b = 0, h = 0, phase = 0, rows = 0, columns = 0;
  int64_t row0 = 0, key0 = 0, key_tile = 0, block = 0;  // block, key_tile: of all sequences
  int64_t tile = 0;                     // of its block of rows
  int64_t slot = 0;                     // of scores in the workspace
  bool kept = false;                    // do they stay there while the item lasts?
  bool fresh = false;                   // this core sees the tile for the first time: no head or phase before it did
  bool first = false, last = false;     // of the heads of the item's block that this core has
  bool opens = false, closes = false;   // the first and the last step of an item
  bool begins = false, ends = false;    // of the last phase: sums start and are complete
  bool gathered = false;                // the first of several phases ends: a row's statistics are complete
};

class Walk {
 public:
  __aicore__ inline Walk(const Operands& o, int64_t core) : o(o) {
    int64_t total = 0;
    while (find()) total += (t1 - t0) * o.heads;
    low = total * core / o.cores, high = total * (core + 1) / o.cores;
    b = -1, block = blocks = g = 0, kt = tiles = 0;
  }
  __aicore__ inline bool next(Step& s) {
    if (!going && !next_item()) return false;
    s.b = b, s.h = h, s.phase = phase;
    s.row0 = q0 + (block - 1) * o.r, s.rows = (int32_t)least(o.r, q1 - s.row0);
    s.key0 = k0 + tile * o.c, s.columns = (int32_t)least(o.c, k0 + last_key - s.key0), s.key_tile = kt + tile, s.block = g - 1;
    s.kept = PHASES > 1 && t1 - t0 <= o.kept;
    s.slot = !s.kept ? o.kept + SHORT * DEPTH + steps % DEPTH : t1 - t0 > SHORT ? tile - t0 : o.kept + items % DEPTH * SHORT + tile - t0;
    steps++;
    s.tile = tile - t0, s.first = fresh, s.last = last, s.fresh = fresh && phase == 0;
    s.opens = tile == t0 && phase == 0;
    s.gathered = PHASES > 1 && tile == t1 - 1 && phase == 0;
    s.begins = tile == t0 && phase == PHASES - 1;
    s.ends = s.closes = tile == t1 - 1 && phase == PHASES - 1;
    if (++tile == t1) tile = t0, going = ++phase < PHASES;
    return true;
  }

 private:
  // The next block of rows.
  __aicore__ inline bool find() {
    while (block == blocks) {
      if (++b == o.batch) return false;
      kt += tiles;
      q0 = o.query_offsets.GetValue(b), q1 = o.query_offsets.GetValue(b + 1);
      k0 = o.key_offsets.GetValue(b), k1 = o.key_offsets.GetValue(b + 1);
      block = 0, blocks = (q1 - q0 + o.r - 1) / o.r, tiles = (k1 - k0 + o.c - 1) / o.c;
    }
    t0 = o.blocks.GetValue(g * BLOCK_WORDS), t1 = o.blocks.GetValue(g * BLOCK_WORDS + 1), last_key = o.blocks.GetValue(g * BLOCK_WORDS + 2);
    block++, g++;
    return true;
  }
  __aicore__ inline bool next_item() {
    for (;;) {
      if (h + 1 < o.heads && b >= 0 && b < o.batch && t1 > t0) h++;
      else {
        if (!find()) return false;
        h = 0;
      }
      if (t1 == t0) continue;
      if (area >= high) return false;
      int64_t at = area;
      area += t1 - t0;
      if (at < low) continue;
      tile = t0, phase = 0, going = true, items++;
      fresh = last_block != g, last_block = g;
      last = h + 1 == o.heads || area >= high;
      return true;
    }
  }
  const Operands& o;
  bool going = false, fresh = false, last = false;
  int64_t last_key = 0, last_block = -1, items = 0, steps = 0;
  int64_t low = 0, high = 0, area = 0, q0 = 0, q1 = 0, k0 = 0, k1 = 0, block = 0, blocks = 0, tiles = 0, g = 0, kt = 0, t0 = 0, t1 = 0;
  int32_t b = -1, h = 0, phase = 0;
  int64_t tile = 0;
};

// A cube core's work: scores of tile t, then outputs of tile t - 2, while its vector cores are at t - 1.
template <class Core> __aicore__ inline void overlap(const Operands& o, Core& core) {
  SyncAll<false>();
  DataCacheCleanAndInvalid<int32_t, CacheLine::ENTIRE_DATA_CACHE, DcciDst::CACHELINE_OUT>(o.blocks);
  Walk walk(o, GetBlockIdx());
  Step ring[DEPTH];
  int64_t t = 0;
  for (; walk.next(ring[t % DEPTH]); t++) {
    core.scores(ring[t % DEPTH], (int)(t % DEPTH));
    if (t >= 2) core.outputs(ring[(t - 2) % DEPTH], (int)((t - 2) % DEPTH));
  }
  for (int64_t late = t < 2 ? 0 : t - 2; late < t; late++) core.outputs(ring[late % DEPTH], (int)(late % DEPTH));
}
