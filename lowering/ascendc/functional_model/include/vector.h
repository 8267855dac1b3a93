// How a vector instruction walks its operands: repeats of 256 bytes, blocks of 32 bytes, strides, masks.
//
// A repeat reads all of its operands before it writes: within a repeat an operand may be its own result. A repeat that
// reads what an earlier repeat of the same instruction wrote is refused, as documented.
#pragma once
#include "copy.h"

namespace AscendC {
constexpr uint64_t MASK_PLACEHOLDER = 0;
struct UnaryRepeatParams {
  uint32_t blockNumber = 8;
  uint16_t dstBlkStride = 1, srcBlkStride = 1;
  uint8_t dstRepStride = 8, srcRepStride = 8;
  bool repeatStrideMode = false, strideSizeMode = false, halfBlock = false;
  UnaryRepeatParams() = default;
  UnaryRepeatParams(uint16_t dst, uint16_t src, uint8_t dst_repeat, uint8_t src_repeat, bool half_block = false)
      : dstBlkStride(dst), srcBlkStride(src), dstRepStride(dst_repeat), srcRepStride(src_repeat), halfBlock(half_block) {}
};
struct BinaryRepeatParams {
  uint32_t blockNumber = 8;
  uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
  bool repeatStrideMode = false, strideSizeMode = false;
  BinaryRepeatParams() = default;
  BinaryRepeatParams(uint8_t dst, uint8_t src0, uint8_t src1, uint8_t dst_repeat, uint8_t src0_repeat, uint8_t src1_repeat)
      : dstBlkStride(dst), src0BlkStride(src0), src1BlkStride(src1), dstRepStride(dst_repeat), src0RepStride(src0_repeat),
        src1RepStride(src1_repeat) {}
};

inline uint32_t DivCeil(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// Which elements of which repeats take part.
struct Lanes {
  int width = 0, repeats = 0;  // elements a repeat
  bool counted = false;        // the first `total` of all; else `bits` in every repeat
  uint64_t total = 0, bits[2] = {0, 0};
  bool on(int repeat, int lane) const {
    if (counted) return (uint64_t)repeat * width + lane < total;
    return bits[lane / 64] >> (lane % 64) & 1;
  }
};
inline Lanes lanes_of_total(int width, uint64_t total) {
  Lanes lanes;
  lanes.width = width, lanes.counted = true, lanes.total = total, lanes.repeats = (int)((total + width - 1) / width);
  return lanes;
}
inline int checked_repeats(const char* name, int64_t repeats) {
  if (repeats < 0 || repeats > 255) refuse(name, ": repeatTime ", repeats, " is not in 0 to 255");
  return (int)repeats;
}
inline Lanes lanes_of_register(const char* name, int width, int64_t repeats) {
  const MaskRegister& mask = core().mask;
  if (mask.counter) return lanes_of_total(width, mask.low);
  Lanes lanes;
  lanes.width = width, lanes.repeats = checked_repeats(name, repeats), lanes.bits[0] = mask.low, lanes.bits[1] = mask.high;
  return lanes;
}
inline Lanes lanes_of_mask(const char* name, int width, bool set, uint64_t n, int64_t repeats) {
  if (!set) return lanes_of_register(name, width, repeats);
  if (core().mask.counter) return lanes_of_total(width, n);
  if (n > (uint64_t)width) refuse(name, ": mask ", n, " is more than the ", width, " elements of a repeat");
  Lanes lanes;
  lanes.width = width, lanes.repeats = checked_repeats(name, repeats);
  lanes.bits[0] = n >= 64 ? ~0ull : (1ull << n) - 1;
  lanes.bits[1] = n >= 128 ? ~0ull : n > 64 ? (1ull << (n - 64)) - 1 : 0;
  return lanes;
}
inline Lanes lanes_of_mask(const char* name, int width, bool set, const uint64_t* bits, int64_t repeats) {
  if (!set) return lanes_of_register(name, width, repeats);
  if (core().mask.counter) return lanes_of_total(width, bits[0]);
  Lanes lanes;
  lanes.width = width, lanes.repeats = checked_repeats(name, repeats), lanes.bits[0] = bits[0];
  lanes.bits[1] = width > 64 ? bits[1] : 0;
  return lanes;
}
inline Lanes lanes_of_count(const char* name, int width, bool set, int64_t count) {
  if (count < 0) refuse(name, ": count ", count, " is negative");
  if (set) return lanes_of_total(width, count);
  if (!core().mask.counter) refuse(name, ": a count with the mask of SetVectorMask needs SetMaskCount");
  return lanes_of_total(width, core().mask.low);
}
template <class... T> constexpr int width_of() { return 256 / (int)std::max({sizeof(T)...}); }

// An operand and its strides, in blocks of 32 bytes.
template <class T> struct Operand {
  const LocalTensor<T>& tensor;
  int block, repeat;
  size_t at(int width, int r, int lane) const {
    size_t per_block = 32 / sizeof(T);
    return ((size_t)r * repeat + (size_t)(lane / per_block) * block) * 32 + lane % per_block * sizeof(T);
  }
};
// Without strides given: one repeat after the other. An operand narrower than the widest takes fewer blocks a repeat.
template <class T> Operand<T> in_a_row(const LocalTensor<T>& tensor, int width) { return {tensor, 1, (int)(width * sizeof(T) / 32)}; }

template <class D> void need_vector(const Operation& op, const LocalTensor<D>& tensor, size_t unit = 32) {
  need_core(op, Core::VECTOR);
  tensor.aligned(op.name, unit);
}
// dst[lane] = f(src[lane]...) in the lanes that take part.
template <class D, class F, class... S>
void each(Operation& op, const Lanes& lanes, const Operand<D>& dst, F f, const Operand<S>&... src) {
  need_vector(op, dst.tensor);
  (need_vector(op, src.tensor), ...);
  if (lanes.repeats && dst.block == 0 && lanes.width * sizeof(D) > 32) refuse(op.name, ": a block stride of 0 for the result");
  D results[256];
  bool junk[256];
  for (int r = 0; r < lanes.repeats; r++) {
    for (int lane = 0; lane < lanes.width; lane++) {
      if (!lanes.on(r, lane)) continue;
      bool dirty = false;
      results[lane] = f(src.tensor.load(op, src.at(lanes.width, r, lane), dirty)...);
      junk[lane] = dirty;
    }
    for (int lane = 0; lane < lanes.width; lane++)
      if (lanes.on(r, lane)) dst.tensor.store(op, dst.at(lanes.width, r, lane), results[lane], junk[lane]);
  }
}

// Numbers that arithmetic is done in, so that one rounding, or one wrap, is left to the result.
template <class T> auto wide(T x) {
  if constexpr (is_short<T>) return (float)x;
  else if constexpr (std::is_integral_v<T>) return (int64_t)x;
  else return x;
}
}  // namespace AscendC
