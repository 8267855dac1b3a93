// The vector unit's arithmetic: one operand, two operands, an operand and a scalar. Exp, Ln, Div, Rsqrt are libm's.
#pragma once
#include "vector.h"

namespace AscendC {
template <class T> struct Same { using type = T; };
template <class T> using Scalar_ = typename Same<T>::type;  // not deduced from the scalar

#define UNARY(Name, formula, ...)                                                                                          \
  template <class T> T Name##_of(T value) { auto a = wide(value); return (T)(formula); }                                   \
  template <class T> void Name##_in(const Lanes& lanes, const Operand<T>& dst, const Operand<T>& src) {                    \
    Operation op(PIPE_V, #Name);                                                                                           \
    types<T, __VA_ARGS__>(#Name);                                                                                          \
    each(op, lanes, dst, [](T x) { return Name##_of(x); }, src);                                                           \
  }                                                                                                                        \
  template <class T, bool isSetMask = true> void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t count) { \
    constexpr int w = width_of<T>();                                                                                       \
    Name##_in(lanes_of_count(#Name, w, isSetMask, count), in_a_row(dst, w), in_a_row(src, w));                             \
  }                                                                                                                        \
  template <class T, bool isSetMask = true, class Mask>                                                                    \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, Mask mask, int64_t repeats, const UnaryRepeatParams& p) { \
    Name##_in(lanes_of_mask(#Name, width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstBlkStride, p.dstRepStride}, \
              Operand<T>{src, p.srcBlkStride, p.srcRepStride});                                                            \
  }
UNARY(Exp, std::exp((float)a), half, float)
UNARY(Ln, std::log((float)a), half, float)
UNARY(Abs, a < 0 ? -a : a == 0 ? decltype(a)(0) : a, half, float)
UNARY(Sqrt, std::sqrt((float)a), half, float)
UNARY(Rsqrt, 1.0f / std::sqrt((float)a), half, float)
UNARY(Reciprocal, 1.0f / (float)a, half, float)
UNARY(Relu, a > 0 ? a : decltype(a)(0), half, float, int32_t)
UNARY(Not, ~(int64_t)a, int16_t, uint16_t)
#undef UNARY

// `chain`: a later repeat may read, as the second source, what an earlier one wrote, where a stride of 0 asks for it.
#define BINARY(Name, chain, formula, ...)                                                                                  \
  template <class T> T Name##_of(T first, T second) { auto a = wide(first), b = wide(second); return (T)(formula); }       \
  template <class T> void Name##_in(const Lanes& lanes, const Operand<T>& dst, const Operand<T>& x, const Operand<T>& y) { \
    Operation op(PIPE_V, #Name);                                                                                           \
    types<T, __VA_ARGS__>(#Name);                                                                                          \
    op.chained = chain && !std::is_same_v<T, int16_t> && (dst.repeat == 0 || y.repeat == 0);                               \
    each(op, lanes, dst, [](T a, T b) { return Name##_of(a, b); }, x, y);                                                  \
  }                                                                                                                        \
  template <class T, bool isSetMask = true>                                                                                \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y, int32_t count) {                  \
    constexpr int w = width_of<T>();                                                                                       \
    Name##_in(lanes_of_count(#Name, w, isSetMask, count), in_a_row(dst, w), in_a_row(x, w), in_a_row(y, w));               \
  }                                                                                                                        \
  template <class T, bool isSetMask = true, class Mask>                                                                    \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y, Mask mask, int64_t repeats,       \
            const BinaryRepeatParams& p) {                                                                                 \
    Name##_in(lanes_of_mask(#Name, width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstBlkStride, p.dstRepStride}, \
              Operand<T>{x, p.src0BlkStride, p.src0RepStride}, Operand<T>{y, p.src1BlkStride, p.src1RepStride});           \
  }
BINARY(Add, true, a + b, int16_t, half, int32_t, float)
BINARY(Sub, true, a - b, int16_t, half, int32_t, float)
BINARY(Mul, true, a * b, int16_t, half, int32_t, float)
BINARY(Div, false, a / b, half, float)
BINARY(Max, true, a < b ? b : a, int16_t, half, int32_t, float)
BINARY(Min, true, b < a ? b : a, int16_t, half, int32_t, float)
BINARY(And, false, (int64_t)a & (int64_t)b, int16_t, uint16_t)
BINARY(Or, false, (int64_t)a | (int64_t)b, int16_t, uint16_t)
#undef BINARY

// dst = src0 * dst + src1. The documents do not say how often it is rounded: once here.
template <class T> void fused_mul_add(const Lanes& lanes, const Operand<T>& dst, const Operand<T>& x, const Operand<T>& y) {
  Operation op(PIPE_V, "FusedMulAdd");
  types<T, half, float>(op.name);
  each(op, lanes, dst, [](T a, T sum, T b) { return (T)std::fma((float)a, (float)sum, (float)b); }, x, dst, y);
}
template <class T> void FusedMulAdd(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y, const int32_t& count) {
  constexpr int w = width_of<T>();
  fused_mul_add(lanes_of_count("FusedMulAdd", w, true, count), in_a_row(dst, w), in_a_row(x, w), in_a_row(y, w));
}
template <class T, bool isSetMask = true, class Mask>
void FusedMulAdd(const LocalTensor<T>& dst, const LocalTensor<T>& x, const LocalTensor<T>& y, Mask mask, int64_t repeats,
                 const BinaryRepeatParams& p) {
  fused_mul_add(lanes_of_mask("FusedMulAdd", width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstBlkStride, p.dstRepStride},
                Operand<T>{x, p.src0BlkStride, p.src0RepStride}, Operand<T>{y, p.src1BlkStride, p.src1RepStride});
}

#define WITH_SCALAR(Name, formula, ...)                                                                                    \
  template <class T> T Name##_of(T first, T second) { auto a = wide(first), b = wide(second); return (T)(formula); }       \
  template <class T> void Name##_in(const Lanes& lanes, const Operand<T>& dst, const Operand<T>& src, T scalar) {          \
    Operation op(PIPE_V, #Name);                                                                                           \
    types<T, __VA_ARGS__>(#Name);                                                                                          \
    each(op, lanes, dst, [scalar](T x) { return Name##_of(x, scalar); }, src);                                             \
  }                                                                                                                        \
  template <class T, bool isSetMask = true>                                                                                \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, Scalar_<T> scalar, int32_t count) {                      \
    constexpr int w = width_of<T>();                                                                                       \
    Name##_in(lanes_of_count(#Name, w, isSetMask, count), in_a_row(dst, w), in_a_row(src, w), scalar);                     \
  }                                                                                                                        \
  template <class T, bool isSetMask = true, class Mask>                                                                    \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, Scalar_<T> scalar, Mask mask, int64_t repeats,           \
            const UnaryRepeatParams& p) {                                                                                  \
    Name##_in(lanes_of_mask(#Name, width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, p.dstBlkStride, p.dstRepStride}, \
              Operand<T>{src, p.srcBlkStride, p.srcRepStride}, scalar);                                                    \
  }
WITH_SCALAR(Adds, a + b, int16_t, half, int32_t, float)
WITH_SCALAR(Muls, a * b, int16_t, half, int32_t, float)
WITH_SCALAR(Maxs, a < b ? b : a, int16_t, half, int32_t, float)
WITH_SCALAR(Mins, b < a ? b : a, int16_t, half, int32_t, float)
WITH_SCALAR(ShiftLeft, (int64_t)((uint64_t)(int64_t)a << (int64_t)b), int16_t, uint16_t, int32_t, uint32_t)
WITH_SCALAR(ShiftRight, (int64_t)a >> (int64_t)b, int16_t, uint16_t, int32_t, uint32_t)
WITH_SCALAR(LeakyRelu, a >= 0 ? a : a * b, half, float)
#undef WITH_SCALAR

template <class T, bool isSetMask = true> void Duplicate(const LocalTensor<T>& dst, Scalar_<T> value, int32_t count) {
  Operation op(PIPE_V, "Duplicate");
  types<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(op.name);
  constexpr int w = width_of<T>();
  each(op, lanes_of_count(op.name, w, isSetMask, count), in_a_row(dst, w), [value]() { return value; });
}
template <class T, bool isSetMask = true, class Mask>
void Duplicate(const LocalTensor<T>& dst, Scalar_<T> value, Mask mask, int64_t repeats, uint16_t block, uint8_t repeat) {
  Operation op(PIPE_V, "Duplicate");
  types<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(op.name);
  each(op, lanes_of_mask(op.name, width_of<T>(), isSetMask, mask, repeats), Operand<T>{dst, block, repeat},
       [value]() { return value; });
}
// first, first + 1, ...
template <class T> void CreateVecIndex(LocalTensor<T> dst, const T& first, uint32_t count) {
  Operation op(PIPE_V, "CreateVecIndex");
  types<T, int16_t, half, int32_t, float>(op.name);
  constexpr int w = width_of<T>();
  int64_t next = 0;
  each(op, lanes_of_total(w, count), in_a_row(dst, w), [&]() { return (T)(wide(first) + next++); });
}
template <class T> void ArithProgression(const LocalTensor<T>& dst, const T first, const T step, const int32_t count) {
  Operation op(PIPE_V, "ArithProgression");
  types<T, int16_t, half, int32_t, float>(op.name);
  constexpr int w = width_of<T>();
  int64_t next = 0;
  each(op, lanes_of_total(w, count), in_a_row(dst, w), [&]() { return (T)(wide(first) + wide(step) * next++); });
}
}  // namespace AscendC
