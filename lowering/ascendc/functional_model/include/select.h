// Compare and Select: one bit an element, the lowest bit first.
#pragma once
#include "arithmetic.h"

namespace AscendC {
template <class T> bool compared(T a, T b, CMPMODE mode) {
  auto x = wide(a), y = wide(b);
  switch (mode) {
    case CMPMODE::LT: return x < y;
    case CMPMODE::GT: return x > y;
    case CMPMODE::EQ: return x == y;
    case CMPMODE::LE: return x <= y;
    case CMPMODE::GE: return x >= y;
    default: return x != y;
  }
}
template <class T> void need_comparable(const char* name, CMPMODE mode) {
  types<T, half, float, int32_t>(name);
  if (std::is_same_v<T, int32_t> && mode != CMPMODE::EQ) refuse(name, ": int32_t is only compared for EQ");
}
// Whole repeats: the mask is not looked at on Atlas A2. `right(at)` is the second value.
template <class T, class U, class Right>
void compare_into(Operation& op, const LocalTensor<U>& dst, const Operand<T>& left, int repeats, CMPMODE mode, Right right) {
  types<U, int8_t, uint8_t>(op.name);
  need_comparable<T>(op.name, mode);
  need_vector(op, dst);
  need_vector(op, left.tensor);
  constexpr int w = width_of<T>();
  for (int r = 0; r < repeats; r++) {
    uint8_t bits[w / 8] = {};
    bool junk[w / 8] = {};
    for (int lane = 0; lane < w; lane++) {
      T a = left.tensor.load(op, left.at(w, r, lane), junk[lane / 8]);
      bits[lane / 8] |= (uint8_t)compared(a, right(w, r, lane, junk[lane / 8]), mode) << lane % 8;
    }
    for (int b = 0; b < w / 8; b++) dst.store(op, (size_t)r * w / 8 + b, (U)bits[b], junk[b]);
  }
}
template <class T> int whole_repeats(const char* name, uint64_t count) {
  if (count * sizeof(T) % 256) refuse(name, ": ", count, " elements are ", count * sizeof(T), " bytes, no multiple of 256");
  return (int)(count / width_of<T>());
}
template <class T, class U>
void compare_tensors(const LocalTensor<U>& dst, const Operand<T>& x, const Operand<T>& y, CMPMODE mode, int repeats) {
  Operation op(PIPE_V, "Compare");
  need_vector(op, y.tensor);
  compare_into(op, dst, x, repeats, mode,
               [&](int w, int r, int lane, bool& junk) { return y.tensor.load(op, y.at(w, r, lane), junk); });
}
template <class T, class U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y, CMPMODE mode, uint32_t count) {
  constexpr int w = width_of<T>();
  compare_tensors(dst, in_a_row(x, w), in_a_row(y, w), mode, whole_repeats<T>("Compare", count));
}
template <class T, class U, bool isSetMask = true, class Mask>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y, CMPMODE mode, Mask, int64_t repeats,
             const BinaryRepeatParams& p) {
  compare_tensors(dst, Operand<T>{x, p.src0BlkStride, p.src0RepStride}, Operand<T>{y, p.src1BlkStride, p.src1RepStride}, mode,
                  checked_repeats("Compare", repeats));
}
template <class T, class U> void compare_scalar(const LocalTensor<U>& dst, const Operand<T>& x, T y, CMPMODE mode, int repeats) {
  Operation op(PIPE_V, "CompareScalar");
  compare_into(op, dst, x, repeats, mode, [y](int, int, int, bool&) { return y; });
}
template <class T, class U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& x, const Scalar_<T> y, CMPMODE mode, uint32_t count) {
  compare_scalar(dst, in_a_row(x, width_of<T>()), y, mode, whole_repeats<T>("CompareScalar", count));
}
template <class T, class U, bool isSetMask = true, class Mask>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& x, const Scalar_<T> y, CMPMODE mode, Mask, int64_t repeats,
                   const UnaryRepeatParams& p) {
  compare_scalar(dst, Operand<T>{x, p.srcBlkStride, p.srcRepStride}, y, mode, checked_repeats("CompareScalar", repeats));
}
template <class T, class U, class... Rest>
void Compares(const LocalTensor<U>& dst, const LocalTensor<T>& x, const Scalar_<T> y, CMPMODE mode, const Rest&... rest) {
  CompareScalar(dst, x, y, mode, rest...);
}

// The bit of an element: mode 0 uses the first bits again in every repeat, modes 1 and 2 go on.
template <class T, class U, class Other>
void select_into(const Lanes& lanes, const Operand<T>& dst, const LocalTensor<U>& mask, const Operand<T>& src, SELMODE mode,
                 Other other) {
  Operation op(PIPE_V, "Select");
  types<T, half, float>(op.name);
  types<U, uint8_t, uint16_t, uint32_t, uint64_t>(op.name);
  need_vector(op, dst.tensor);
  need_vector(op, mask);
  need_vector(op, src.tensor);
  if (mode != SELMODE::VSEL_CMPMASK_SPR && machine().ub - core().ub.used < 8192)
    refuse("Select: modes 1 and 2 need 8192 bytes of the unified buffer for themselves; ", machine().ub - core().ub.used, " are left");
  LocalTensor<uint8_t> bytes = mask.template ReinterpretCast<uint8_t>();
  T results[256];
  bool junk[256];
  for (int r = 0; r < lanes.repeats; r++) {
    for (int lane = 0; lane < lanes.width; lane++) {
      if (!lanes.on(r, lane)) continue;
      size_t bit = mode == SELMODE::VSEL_CMPMASK_SPR ? lane : (size_t)r * lanes.width + lane;
      bool dirty = false;
      bool first = bytes.load(op, bit / 8, dirty) >> (bit % 8) & 1;
      bool unused = false;
      T a = src.tensor.load(op, src.at(lanes.width, r, lane), first ? dirty : unused);
      T b = other(op, r, lane, first ? unused : dirty);
      results[lane] = first ? a : b;
      junk[lane] = dirty;
    }
    for (int lane = 0; lane < lanes.width; lane++)
      if (lanes.on(r, lane)) dst.tensor.store(op, dst.at(lanes.width, r, lane), results[lane], junk[lane]);
  }
}
template <class T, class U>
void select_tensor(const Lanes& lanes, const Operand<T>& dst, const LocalTensor<U>& mask, const Operand<T>& x, const Operand<T>& y,
                   SELMODE mode) {
  if (mode == SELMODE::VSEL_TENSOR_SCALAR_MODE) refuse("Select: mode 1 takes a scalar as its second source");
  y.tensor.aligned("Select");
  select_into(lanes, dst, mask, x, mode,
              [&](Operation& op, int r, int lane, bool& junk) { return y.tensor.load(op, y.at(lanes.width, r, lane), junk); });
}
template <class T, class U>
void select_scalar(const Lanes& lanes, const Operand<T>& dst, const LocalTensor<U>& mask, const Operand<T>& x, T y, SELMODE mode) {
  if (mode != SELMODE::VSEL_TENSOR_SCALAR_MODE) refuse("Select: only mode 1 takes a scalar as its second source");
  select_into(lanes, dst, mask, x, mode, [y](Operation&, int, int, bool&) { return y; });
}
template <class T, class U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& mask, const LocalTensor<T>& x, const LocalTensor<T>& y, SELMODE mode,
            uint32_t count) {
  constexpr int w = width_of<T>();
  select_tensor(lanes_of_total(w, count), in_a_row(dst, w), mask, in_a_row(x, w), in_a_row(y, w), mode);
}
template <class T, class U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& mask, const LocalTensor<T>& x, Scalar_<T> y, SELMODE mode,
            uint32_t count) {
  constexpr int w = width_of<T>();
  select_scalar(lanes_of_total(w, count), in_a_row(dst, w), mask, in_a_row(x, w), y, mode);
}
template <class T, class U, bool isSetMask = true, class Mask>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& bits, const LocalTensor<T>& x, const LocalTensor<T>& y, SELMODE mode,
            Mask mask, int64_t repeats, const BinaryRepeatParams& p) {
  select_tensor(lanes_of_mask("Select", width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstBlkStride, p.dstRepStride},
                bits, Operand<T>{x, p.src0BlkStride, p.src0RepStride}, Operand<T>{y, p.src1BlkStride, p.src1RepStride}, mode);
}
template <class T, class U, bool isSetMask = true, class Mask>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& bits, const LocalTensor<T>& x, Scalar_<T> y, SELMODE mode, Mask mask,
            int64_t repeats, const BinaryRepeatParams& p) {
  select_scalar(lanes_of_mask("Select", width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstBlkStride, p.dstRepStride},
                bits, Operand<T>{x, p.src0BlkStride, p.src0RepStride}, y, mode);
}
}  // namespace AscendC
