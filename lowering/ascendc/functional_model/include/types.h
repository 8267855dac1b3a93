// Names and number types of AscendC: positions, pipes, events, modes, half and bfloat16_t; how a check fails.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __aicore__
#define __global__
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __mix__(cube, vector)
#define __vector__
#define __cube__
using GM_ADDR = uint8_t*;

// A constraint of the API that a kernel broke. The launcher adds which core broke it.
struct Broken : std::runtime_error { using std::runtime_error::runtime_error; };

template <class... Words> [[noreturn]] void refuse(const Words&... words) {
  std::ostringstream text;
  (text << ... << words);
  throw Broken(text.str());
}

inline uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
inline float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

// The odd one of the two neighbours is kept where bits are lost (Von Neumann's rounding).
enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

// `bits` of x's significand beyond the kept ones decide, in integers: exact for every mode.
inline uint64_t rounded(uint64_t magnitude, int dropped, bool negative, RoundMode mode) {
  if (dropped <= 0) return magnitude << -dropped;
  if (dropped > 62) { magnitude = magnitude != 0; dropped = 2; }
  uint64_t kept = magnitude >> dropped, rest = magnitude & ((1ull << dropped) - 1), middle = 1ull << (dropped - 1);
  switch (mode) {
    case RoundMode::CAST_FLOOR: return kept + (negative && rest);
    case RoundMode::CAST_CEIL: return kept + (!negative && rest);
    case RoundMode::CAST_ROUND: return kept + (rest >= middle);
    case RoundMode::CAST_TRUNC: return kept;
    case RoundMode::CAST_ODD: return kept | (rest != 0);
    default: return kept + (rest > middle || (rest == middle && (kept & 1)));
  }
}

// float32 -> a 16-bit format with `E` exponent bits, in any rounding mode, as IEEE 754 has it: beyond the range
// infinity, or the largest number where the mode leads inwards.
template <int E> uint16_t narrow(float x, RoundMode mode = RoundMode::CAST_RINT) {
  constexpr int M = 15 - E, bias = (1 << (E - 1)) - 1, top = (1 << E) - 1;
  uint32_t u = bits_of(x), magnitude = u & 0x7fffffffu;
  uint16_t sign = (u >> 16) & 0x8000;
  if (magnitude > 0x7f800000u) return sign | (top << M) | (1 << (M - 1));
  if (magnitude == 0x7f800000u) return sign | (top << M);
  int exponent = (int)(magnitude >> 23);
  uint64_t significand = (magnitude & 0x7fffff) | (exponent ? 0x800000 : 0);
  int target = (exponent ? exponent : 1) - 127 + bias;  // below 1: subnormal there
  uint64_t kept = rounded(significand, 23 - M + (target < 1 ? 1 - target : 0), sign, mode);
  uint64_t whole = target < 1 ? kept : kept + ((uint64_t)(target - 1) << M);
  if (whole < ((uint64_t)top << M)) return sign | whole;
  bool inward = mode == RoundMode::CAST_TRUNC || mode == RoundMode::CAST_ODD ||
                mode == (sign ? RoundMode::CAST_CEIL : RoundMode::CAST_FLOOR);
  return sign | ((top << M) - inward);
}
template <int E> float widen(uint16_t h) {
  constexpr int M = 15 - E, bias = (1 << (E - 1)) - 1, top = (1 << E) - 1;
  int exponent = (h >> M) & top, significand = h & ((1 << M) - 1);
  float size = exponent == top ? (significand ? NAN : INFINITY)
               : exponent      ? std::ldexp(1.0f + significand / (float)(1 << M), exponent - bias)
                               : std::ldexp((float)significand, 1 - bias - M);
  return std::copysign(size, h & 0x8000 ? -1.0f : 1.0f);
}
template <int E> struct Short {
  uint16_t bits = 0;
  Short() = default;
  template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>> Short(N x) : bits(narrow<E>((float)x)) {}
  operator float() const { return widen<E>(bits); }
};
using half = Short<5>;
using bfloat16_t = Short<8>;
template <int E> Short<E> short_of(float x, RoundMode mode) { Short<E> h; h.bits = narrow<E>(x, mode); return h; }
template <class T> constexpr bool is_short = std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t>;
template <class T> constexpr bool is_real = is_short<T> || std::is_floating_point_v<T>;

template <class T> constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, half>) return "half";
  else if constexpr (std::is_same_v<T, bfloat16_t>) return "bfloat16_t";
  else if constexpr (std::is_same_v<T, float>) return "float";
  else if constexpr (std::is_signed_v<T>)
    return sizeof(T) == 8 ? "int64_t" : sizeof(T) == 4 ? "int32_t" : sizeof(T) == 2 ? "int16_t" : "int8_t";
  else return sizeof(T) == 8 ? "uint64_t" : sizeof(T) == 4 ? "uint32_t" : sizeof(T) == 2 ? "uint16_t" : "uint8_t";
}

// An instruction's documented types (Atlas A2): another type is refused when the instruction is reached.
template <class T, class... Known> void types(const char* name) {
  if (!(std::is_same_v<T, Known> || ...)) refuse(name, " does not take ", type_name<T>());
}

enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };
constexpr int PIPES = PIPE_ALL;
inline const char* pipe_name(int pipe) {
  static const char* names[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "ALL"};
  return names[pipe];
}
enum event_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

namespace AscendC {
using ::half;
using ::bfloat16_t;
using ::RoundMode;
using TEventID = int8_t;

enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM = VECCALC, SPM, TSCM, C2PIPE2GM };
using QuePosition = TPosition;
enum class CMPMODE : uint8_t { LT, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
enum class MaskMode : uint8_t { NORMAL, COUNTER };
enum class CacheLine : uint64_t { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };
// Source and destination pipe of every event.
#define HARD_EVENTS \
  EVENT(MTE2, MTE1) EVENT(MTE1, MTE2) EVENT(MTE1, M) EVENT(M, MTE1) EVENT(MTE2, V) EVENT(V, MTE2) EVENT(MTE3, V) EVENT(V, MTE3) \
  EVENT(M, V) EVENT(V, M) EVENT(V, V) EVENT(MTE3, MTE1) EVENT(MTE1, MTE3) EVENT(MTE1, V) EVENT(V, MTE1) EVENT(MTE2, M) \
  EVENT(M, MTE2) EVENT(M, FIX) EVENT(FIX, M) EVENT(FIX, MTE3) EVENT(MTE3, FIX) EVENT(FIX, MTE1) EVENT(MTE1, FIX) EVENT(FIX, MTE2) \
  EVENT(MTE2, FIX) EVENT(V, S) EVENT(S, V) EVENT(MTE2, S) EVENT(S, MTE2) EVENT(MTE3, S) EVENT(S, MTE3) EVENT(MTE2, MTE3) \
  EVENT(MTE3, MTE2) EVENT(MTE1, S) EVENT(S, MTE1) EVENT(M, S) EVENT(S, M) EVENT(FIX, S) EVENT(S, FIX) EVENT(FIX, V) \
  EVENT(V, FIX) EVENT(M, MTE3) EVENT(MTE3, M)
enum class HardEvent : uint8_t {
#define EVENT(from, to) from##_##to,
HARD_EVENTS
#undef EVENT
  MAX
};
struct EventPipes { pipe_t from, to; const char* name; };
constexpr EventPipes EVENT_PIPES[] = {
#define EVENT(from, to) {PIPE_##from, PIPE_##to, #from "_" #to},
HARD_EVENTS
#undef EVENT
};
inline const EventPipes& pipes_of(HardEvent event) { return EVENT_PIPES[(int)event]; }

inline bfloat16_t ToBfloat16(float x) { return bfloat16_t(x); }
inline float ToFloat(bfloat16_t x) { return x; }
}  // namespace AscendC
