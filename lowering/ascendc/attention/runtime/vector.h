// A vector core: half of the rows of every tile. Scores come from the cube core through global memory, and weights go back.
class Vector : VectorCore {
 public:
  __aicore__ inline Vector(const Operands& o) : VectorCore(o) {}
  __aicore__ inline void run() {
    pipe.InitBuffer(x.memory, (uint32_t)o.scratch);
    if (PRODUCT) pipe.InitBuffer(in, 2, (uint32_t)(o.vr * o.vc * sizeof(ST)));
    pipe.InitBuffer(out, 2, (uint32_t)(o.vr * o.vc * sizeof(VT)));
    x.layout();
    tiles(*this);
  }
  __aicore__ inline void step(const Step& s, int slot, int32_t from, int32_t rows) {
    for (int32_t y = 0; y < rows; y += (int32_t)o.vr) {
      for (int32_t c = 0; c < s.columns; c += (int32_t)o.vc) {
        part(s, rows, y, c);
        tile(s, ((group * DEPTH + slot) * o.r + from + y) * o.c + c, ((group * o.s_slots + s.slot) * o.r + from + y) * o.c + c);
      }
      if (s.gathered) x.finish_statistics(-1);
    }
  }

 private:
  __aicore__ inline void tile(const Step& s, int64_t at, int64_t score) {
    LocalTensor<ST> scores;
    if (PRODUCT) scores = arrive<ST>(in, o.s[score]), x.arrived[0] = scores.template ReinterpretCast<float>();
    begin_shared(s);
    if (s.phase == PHASES - 1) weights(at);
    else x.statistics();
    end_shared();
    if (PRODUCT) in.FreeTensor(scores);
  }
  __aicore__ inline void weights(int64_t at) {
    LocalTensor<float> p = x.weights();
    if (!fits || !x.fits) Duplicate(p, from_bits(0x7fc00000u), x.n);
    LocalTensor<VT> w = out.AllocTensor<VT>();
    if (sizeof(VT) == 4) DataCopy(w.ReinterpretCast<float>(), p, x.n);
    else Cast(w, p, RoundMode::CAST_RINT, x.n);
    out.EnQue(w);
    w = out.DeQue<VT>();
    uint32_t bytes = (uint32_t)(x.columns * sizeof(VT)), gap = (uint32_t)(x.width * sizeof(VT) - up(bytes, 32)) / 32;
    DataCopyPad(o.p[at], w, DataCopyExtParams((uint16_t)x.rows, bytes, gap, (uint32_t)((o.c - x.columns) * sizeof(VT)), 0));
    out.FreeTensor(w);
  }
  TQue<TPosition::VECIN, 2> in;
  TQue<TPosition::VECOUT, 2> out;
};
