// Gather, Brcb, Copy, Transpose: values that change places inside the unified buffer.
#pragma once
#include "arithmetic.h"

namespace AscendC {
struct CopyRepeatParams {
  uint16_t dstStride = 1, srcStride = 1, dstRepeatSize = 8, srcRepeatSize = 8;
  CopyRepeatParams() = default;
  CopyRepeatParams(uint16_t dst, uint16_t src, uint16_t dst_repeat, uint16_t src_repeat)
      : dstStride(dst), srcStride(src), dstRepeatSize(dst_repeat), srcRepeatSize(src_repeat) {}
};
template <class T, bool isSetMask = true, class Mask>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, Mask mask, int64_t repeats, const CopyRepeatParams& p) {
  Operation op(PIPE_V, "Copy");
  types<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(op.name);
  if (p.dstRepeatSize > 4095 || p.srcRepeatSize > 4095) refuse("Copy: a repeat size above 4095");
  each(op, lanes_of_mask(op.name, width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstStride, p.dstRepeatSize},
       [](T x) { return x; }, Operand<T>{src, p.srcStride, p.srcRepeatSize});
}

struct BrcbRepeatParams {
  uint32_t blockNumber = 8;
  uint16_t dstRepStride = 8, dstBlkStride = 1;
  BrcbRepeatParams() = default;
  BrcbRepeatParams(uint16_t block, uint16_t repeat) : dstRepStride(repeat), dstBlkStride(block) {}
};
// Eight elements a repeat, each filling a block.
template <class T> void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, int64_t repeats, const BrcbRepeatParams& p) {
  Operation op(PIPE_V, "Brcb");
  types<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(op.name);
  need_vector(op, dst);
  need_vector(op, src);
  if (p.dstBlkStride == 0) refuse("Brcb: a block stride of 0 for the result");
  for (int r = 0; r < checked_repeats(op.name, repeats); r++)
    for (int b = 0; b < 8; b++) {
      bool junk = false;
      T x = src.load(op, (size_t)(r * 8 + b) * sizeof(T), junk);
      for (size_t i = 0; i < 32; i += sizeof(T))
        dst.store(op, ((size_t)r * p.dstRepStride + (size_t)b * p.dstBlkStride) * 32 + i, x, junk);
    }
}

// dst[i] = the element of src at byte `base` + offset[i].
template <class T>
void gather_in(const Lanes& lanes, const Operand<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& offset,
               uint32_t base) {
  Operation op(PIPE_V, "Gather");
  types<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(op.name);
  need_vector(op, dst.tensor);
  need_vector(op, src);
  need_vector(op, offset);
  for (int r = 0; r < lanes.repeats; r++)
    for (int lane = 0; lane < lanes.width; lane++) {
      if (!lanes.on(r, lane)) continue;
      bool unknown = false, junk = false;
      uint32_t at = base + offset.load(op, ((size_t)r * lanes.width + lane) * 4, unknown);
      if (unknown) refuse("Gather: offset ", r * lanes.width + lane, " is junk");
      if (at % sizeof(T)) refuse("Gather: byte offset ", at, " is not aligned to ", type_name<T>());
      T x = src.load(op, at, junk);
      dst.tensor.store(op, dst.at(lanes.width, r, lane), x, junk);
    }
}
template <class T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& offset, uint32_t base, uint32_t count) {
  constexpr int w = width_of<T>();
  gather_in(lanes_of_total(w, count), in_a_row(dst, w), src, offset, base);
}
template <class T, class Mask>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& offset, uint32_t base, Mask mask,
            int64_t repeats, uint16_t repeat) {
  gather_in(lanes_of_mask("Gather", width_of<T>(), true, mask, repeats), Operand<T>{dst, 1, repeat}, src, offset, base);
}

// A 16 x 16 matrix of 16-bit elements.
template <class T> void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src) {
  Operation op(PIPE_V, "Transpose");
  types<T, int16_t, uint16_t, half>(op.name);
  need_vector(op, dst);
  need_vector(op, src);
  T matrix[256];
  bool junk[256] = {};
  for (int i = 0; i < 256; i++) matrix[i] = src.load(op, (size_t)i * sizeof(T), junk[i]);
  for (int i = 0; i < 256; i++) dst.store(op, (size_t)i * sizeof(T), matrix[i % 16 * 16 + i / 16], junk[i % 16 * 16 + i / 16]);
}
}  // namespace AscendC
