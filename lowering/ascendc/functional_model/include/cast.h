// Cast: the pairs of types and rounding modes that are documented for Atlas A2, each exactly rounded.
#pragma once
#include "arithmetic.h"

namespace AscendC {
constexpr int NONE = 1 << (int)RoundMode::CAST_NONE, ODD = 1 << (int)RoundMode::CAST_ODD;
constexpr int ROUNDINGS = 1 << (int)RoundMode::CAST_RINT | 1 << (int)RoundMode::CAST_FLOOR | 1 << (int)RoundMode::CAST_CEIL |
                          1 << (int)RoundMode::CAST_ROUND | 1 << (int)RoundMode::CAST_TRUNC;

template <class D, class S> constexpr int cast_modes() {
  constexpr auto is = [](auto s, auto d) { return std::is_same_v<S, decltype(s)> && std::is_same_v<D, decltype(d)>; };
  using i8 = int8_t; using u8 = uint8_t; using i16 = int16_t; using i32 = int32_t; using i64 = int64_t;
  if (is(i8(), half()) || is(u8(), half()) || is(i16(), float()) || is(half(), float()) || is(bfloat16_t(), float())) return NONE;
  if (is(i32(), i16()) || is(i32(), i64()) || is(i64(), i32())) return NONE;
  if (is(i16(), half()) || is(half(), i8()) || is(half(), u8()) || is(i32(), float())) return ROUNDINGS | NONE;
  if (is(float(), half())) return ROUNDINGS | ODD | NONE;
  if (is(half(), i16()) || is(half(), i32()) || is(bfloat16_t(), i32()) || is(float(), i16()) || is(float(), bfloat16_t()))
    return ROUNDINGS;
  if (is(float(), i32()) || is(float(), float()) || is(float(), i64()) || is(i64(), float())) return ROUNDINGS;
  return 0;
}

inline double to_whole(double x, RoundMode mode) {
  switch (mode) {
    case RoundMode::CAST_FLOOR: return std::floor(x);
    case RoundMode::CAST_CEIL: return std::ceil(x);
    case RoundMode::CAST_ROUND: return std::round(x);
    case RoundMode::CAST_TRUNC: return std::trunc(x);
    default: return std::nearbyint(x);
  }
}
template <class D> D saturated(double x) {
  if (std::isnan(x)) return 0;
  if (x >= (double)std::numeric_limits<D>::max()) return std::numeric_limits<D>::max();
  if (x <= (double)std::numeric_limits<D>::min()) return std::numeric_limits<D>::min();
  return (D)x;
}
// An integer of up to 64 bits -> float32 in any mode.
inline float float_of_integer(int64_t x, RoundMode mode) {
  uint64_t size = x < 0 ? 0 - (uint64_t)x : x;
  int bits = size ? 64 - __builtin_clzll(size) : 0, dropped = std::max(0, bits - 24);
  float magnitude = std::ldexp((float)rounded(size, dropped, x < 0, mode), dropped);
  return x < 0 ? -magnitude : magnitude;
}
template <class D, class S> D cast_of(S x, RoundMode mode) {
  if constexpr (is_short<D> && is_real<S>) return D(short_of<std::is_same_v<D, half> ? 5 : 8>((float)x, mode));
  else if constexpr (std::is_same_v<D, half>) return short_of<5>((float)x, mode);
  else if constexpr (std::is_same_v<D, float> && std::is_same_v<S, float>) return (float)to_whole(x, mode);
  else if constexpr (std::is_same_v<D, float> && std::is_integral_v<S>) return float_of_integer(x, mode);
  else if constexpr (std::is_same_v<D, float>) return (float)x;
  else if constexpr (is_real<S>) return saturated<D>(to_whole((double)(float)x, mode));
  else return (int64_t)x > (int64_t)std::numeric_limits<D>::max()   ? std::numeric_limits<D>::max()
              : (int64_t)x < (int64_t)std::numeric_limits<D>::min() ? std::numeric_limits<D>::min() : (D)x;
}
template <class D, class S> void cast_in(const Lanes& lanes, const Operand<D>& dst, const Operand<S>& src, RoundMode mode) {
  Operation op(PIPE_V, "Cast");
  if (!cast_modes<D, S>()) refuse("Cast: from ", type_name<S>(), " to ", type_name<D>(), " is not supported");
  if (!(cast_modes<D, S>() >> (int)mode & 1))
    refuse("Cast: from ", type_name<S>(), " to ", type_name<D>(), " has no rounding mode ", (int)mode);
  each(op, lanes, dst, [mode](S x) { return cast_of<D, S>(x, mode); }, src);
}
template <class D, class S, bool isSetMask = true>
void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, const RoundMode& mode, uint32_t count) {
  constexpr int w = width_of<D, S>();
  cast_in(lanes_of_count("Cast", w, isSetMask, count), in_a_row(dst, w), in_a_row(src, w), mode);
}
template <class D, class S, bool isSetMask = true, class Mask>
void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, const RoundMode& mode, Mask mask, int64_t repeats,
          const UnaryRepeatParams& p) {
  cast_in(lanes_of_mask("Cast", width_of<D, S>(), isSetMask, mask, repeats), Operand<D>{dst, p.dstBlkStride, p.dstRepStride},
          Operand<S>{src, p.srcBlkStride, p.srcRepStride}, mode);
}
}  // namespace AscendC
