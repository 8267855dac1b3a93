// The functions of score programs on scalars and lanes, as torch defines them.
#pragma once
#include "vector.h"

// The C library on float and double, without <cmath>, whose headers take longer than the rest of a kernel.
#define GR_LIBM(name) \
  inline float name(float x) { return __builtin_##name##f(x); } \
  inline double name(double x) { return __builtin_##name(x); }
#define GR_LIBM2(name) \
  inline float name(float x, float y) { return __builtin_##name##f(x, y); } \
  inline double name(double x, double y) { return __builtin_##name(x, y); }
namespace libm {
GR_LIBM(exp) GR_LIBM(expm1) GR_LIBM(log) GR_LIBM(log1p) GR_LIBM(sin) GR_LIBM(cos) GR_LIBM(tanh) GR_LIBM(erf)
GR_LIBM(floor) GR_LIBM(ceil) GR_LIBM(trunc) GR_LIBM(nearbyint) GR_LIBM(sqrt) GR_LIBM(fabs)
GR_LIBM2(pow) GR_LIBM2(fmod) GR_LIBM2(copysign)
}

// Lane by lane through the C library: right everywhere, for what is rare between pairs.
template <class V, class F> inline V each(V x, F f) { for (int l = 0; l < W; l++) x[l] = f(x[l]); return x; }
#define GR_UNARY(name, f) \
  inline float name(float x) { return libm::f(x); } \
  inline double name(double x) { return libm::f(x); } \
  inline vf name(vf x) { return each(x, [](float y) { return libm::f(y); }); } \
  inline vd name(vd x) { return each(x, [](double y) { return libm::f(y); }); }

// A polynomial, its highest coefficient first.
template <class... C> inline vf horner(vf x, float first, C... rest) {
  vf p = as<vf>(first);
  ((p = fma(p, x, as<vf>(rest))), ...);
  return p;
}

// 2^n p(r), n = round(x / ln 2), p of degree 6 on |r| <= ln 2 / 2: within 2 ulp, 0 and inf far out, NaN kept.
inline vf exp_(vf x) {
  vf y = x > 88.7228f ? as<vf>(88.7228f) : x;
  y = y < -87.33f ? as<vf>(-87.33f) : y;
  vf t = fma(y, as<vf>(1.44269504f), as<vf>(12582912.0f));
  vf n = t - 12582912.0f;
  vf r = fma(n, as<vf>(-0.693145752f), y);
  r = fma(n, as<vf>(-1.42860677e-6f), r);
  vf p = horner(r, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f);
  p = fma(p * r, r, r) + 1.0f;
  vf result = (vf)((vi)p + ((vi)t << 23));  // the low bits of t hold n
  result = x < -87.33f ? vf{} : result;
  result = x > 88.7228f ? as<vf>(INFINITY) : result;
  return x != x ? x : result;
}
inline float exp_(float x) { return libm::exp(x); }
inline double exp_(double x) { return libm::exp(x); }
inline vd exp_(vd x) { return each(x, [](double y) { return libm::exp(y); }); }

GR_UNARY(log_, log)
GR_UNARY(log1p_, log1p)
GR_UNARY(expm1_, expm1)
GR_UNARY(sin_, sin)
GR_UNARY(cos_, cos)
GR_UNARY(floor_, floor)
GR_UNARY(ceil_, ceil)
GR_UNARY(trunc_, trunc)
GR_UNARY(round_, nearbyint)
GR_UNARY(erf_lanes, erf)

inline float sqrt_(float x) { return libm::sqrt(x); }
inline double sqrt_(double x) { return libm::sqrt(x); }
inline vd sqrt_(vd x) { return each(x, [](double y) { return libm::sqrt(y); }); }

template <class T> inline T one() { return as<T>((typename lane<T>::type)1); }
template <class T> inline T like(typename lane<T>::type x) { return as<T>(x); }

template <class T> inline T sigmoid_(T x) { return one<T>() / (one<T>() + exp_(-x)); }
template <class T> inline T reciprocal_(T x) { return one<T>() / x; }
template <class T> inline T rsqrt_(T x) { return one<T>() / sqrt_(x); }
template <class T> inline T neg_(T x) { return -x; }
template <class T> inline T silu_(T x) { return x * sigmoid_(x); }

inline float erf_(float x) { return libm::erf(x); }
inline double erf_(double x) { return libm::erf(x); }
inline vd erf_(vd x) { return erf_lanes(x); }
// A Taylor series inside; outside 1 - t exp(P(t) - x^2), the Chebyshev fit of Numerical Recipes' erfc (1.2e-7).
inline vf erf_(vf x) {
  vf a = (vf)((vi)x & 0x7FFFFFFF);
  vf s = x * x;
  vf p = horner(s, -8.5483267e-4f, 5.2239776e-3f, -2.6866171e-2f, 1.1283792e-1f, -3.7612639e-1f, 1.1283792f);
  vf small = p * x;
  vf t = 1.0f / (1.0f + 0.5f * a);
  vf q = horner(t, 0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                   0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f);
  vf far = 1.0f - t * exp_(q - s);
  far = x < vf{} ? -far : far;
  return a < 0.5f ? small : far;
}
template <class T> inline T gelu_(T x) {
  typedef typename lane<T>::type E;
  return like<T>((E)0.5) * x * (one<T>() + erf_(x * like<T>((E)0.70710678118654752)));
}
inline float tanh_(float x) { return libm::tanh(x); }
inline double tanh_(double x) { return libm::tanh(x); }
inline vd tanh_(vd x) { return each(x, [](double y) { return libm::tanh(y); }); }
inline vf tanh_(vf x) {  // a series near 0, where 1 - 2 / (exp(2 x) + 1) cancels
  vf s = x * x;
  vf p = horner(s, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                   -3.33332819422e-1f);
  vf small = fma(p * s, x, x);
  vf a = (vf)((vi)x & 0x7FFFFFFF);
  return a < 0.625f ? small : 1.0f - 2.0f / (exp_(x + x) + 1.0f);
}
template <class T> inline T gelu_tanh_(T x) {
  typedef typename lane<T>::type E;
  T inside = like<T>((E)0.79788456080286536) * (x + like<T>((E)0.044715) * x * x * x);
  return like<T>((E)0.5) * x * (one<T>() + tanh_(inside));
}

inline float maximum_(float a, float b) { return a != a || b != b ? NAN : a > b ? a : b; }
inline double maximum_(double a, double b) { return a != a || b != b ? NAN : a > b ? a : b; }
inline i64 maximum_(i64 a, i64 b) { return a > b ? a : b; }
inline vi maximum_(vi a, vi b) { return a > b ? a : b; }
inline vl maximum_(vl a, vl b) { return a > b ? a : b; }
inline vf maximum_(vf a, vf b) { vf m = a > b ? a : b; return a != a ? a : m; }
inline vd maximum_(vd a, vd b) { vd m = a > b ? a : b; return a != a ? a : m; }
inline float minimum_(float a, float b) { return a != a || b != b ? NAN : a < b ? a : b; }
inline double minimum_(double a, double b) { return a != a || b != b ? NAN : a < b ? a : b; }
inline i64 minimum_(i64 a, i64 b) { return a < b ? a : b; }
inline vi minimum_(vi a, vi b) { return a < b ? a : b; }
inline vl minimum_(vl a, vl b) { return a < b ? a : b; }
inline vf minimum_(vf a, vf b) { vf m = a < b ? a : b; return a != a ? a : m; }
inline vd minimum_(vd a, vd b) { vd m = a < b ? a : b; return a != a ? a : m; }

inline float relu_(float x) { return maximum_(x, 0.0f); }
inline double relu_(double x) { return maximum_(x, 0.0); }
inline vf relu_(vf x) { return maximum_(x, vf{}); }
inline vd relu_(vd x) { return maximum_(x, vd{}); }
inline float abs_(float x) { return libm::fabs(x); }
inline double abs_(double x) { return libm::fabs(x); }
inline i64 abs_(i64 x) { return x < 0 ? -x : x; }
inline vi abs_(vi x) { return x < 0 ? -x : x; }
inline vl abs_(vl x) { return x < 0 ? -x : x; }
inline vf abs_(vf x) { return (vf)((vi)x & 0x7FFFFFFF); }
inline vd abs_(vd x) { return each(x, [](double y) { return libm::fabs(y); }); }
template <class T> inline T sign_(T x) {
  typedef typename lane<T>::type E;
  if constexpr (lane<T>::vector) return x > T{} ? like<T>((E)1) : x < T{} ? like<T>((E)-1) : T{};
  else return (E)(x > 0) - (E)(x < 0);
}
template <class T> inline T softplus_(T x) {
  typedef typename lane<T>::type E;
  T inside = log1p_(exp_(x));
  if constexpr (lane<T>::vector) return x > like<T>((E)20) ? x : inside;
  else return x > 20 ? x : inside;
}

// ---- two operands
inline float pow_(float a, float b) { return libm::pow(a, b); }
inline double pow_(double a, double b) { return libm::pow(a, b); }
inline vf pow_(vf a, vf b) { for (int l = 0; l < W; l++) a[l] = libm::pow((float)a[l], (float)b[l]); return a; }
inline vd pow_(vd a, vd b) { for (int l = 0; l < W; l++) a[l] = libm::pow((double)a[l], (double)b[l]); return a; }
// Integer division: a divisor of 0 stands where no result is read, so it only must not trap.
inline i64 truncdiv_(i64 a, i64 b) { return b == 0 ? 0 : b == -1 ? (i64)(0 - (uint64_t)a) : a / b; }
inline i64 floordiv_(i64 a, i64 b) {
  i64 q = truncdiv_(a, b);
  return b != 0 && b != -1 && a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
inline i64 mod_(i64 a, i64 b) { return b == 0 ? 0 : a - floordiv_(a, b) * b; }
template <class E> inline E floordiv_real(E a, E b) {
  E m = libm::fmod(a, b);
  E q = (a - m) / b;
  if (m != 0 && (b < 0) != (m < 0)) q -= 1;
  if (q == 0 || q != q) return b == 0 ? a / b : libm::copysign((E)0, a / b);
  E f = libm::floor(q);
  return q - f > (E)0.5 ? f + 1 : f;
}
template <class E> inline E mod_real(E a, E b) {
  E m = libm::fmod(a, b);
  return m != 0 && (b < 0) != (m < 0) ? m + b : m;
}
inline float floordiv_(float a, float b) { return floordiv_real(a, b); }
inline double floordiv_(double a, double b) { return floordiv_real(a, b); }
inline float mod_(float a, float b) { return mod_real(a, b); }
inline double mod_(double a, double b) { return mod_real(a, b); }
inline float truncdiv_(float a, float b) { return libm::trunc(a / b); }
inline double truncdiv_(double a, double b) { return libm::trunc(a / b); }
#define GR_BINARY(name, V, E) \
  inline V name(V a, V b) { for (int l = 0; l < W; l++) a[l] = name((E)a[l], (E)b[l]); return a; }
GR_BINARY(truncdiv_, vi, i64) GR_BINARY(truncdiv_, vl, i64) GR_BINARY(truncdiv_, vf, float) GR_BINARY(truncdiv_, vd, double)
GR_BINARY(floordiv_, vi, i64) GR_BINARY(floordiv_, vl, i64) GR_BINARY(floordiv_, vf, float) GR_BINARY(floordiv_, vd, double)
GR_BINARY(mod_, vi, i64) GR_BINARY(mod_, vl, i64) GR_BINARY(mod_, vf, float) GR_BINARY(mod_, vd, double)

// ---- dropout: a counter, not a state (gr_compile.ops.noise holds the definition)
inline uint32_t mix(uint32_t x) { x ^= x >> 16; x *= 0x85EBCA6Bu; x ^= x >> 13; x *= 0xC2B2AE35u; return x ^ (x >> 16); }
inline vu mix(vu x) { x ^= x >> 16; x *= 0x85EBCA6Bu; x ^= x >> 13; x *= 0xC2B2AE35u; return x ^ (x >> 16); }
inline uint32_t row_noise(i64 seed, i64 b, i64 h, i64 i) {
  uint32_t x = mix((uint32_t)seed) ^ (uint32_t)((uint64_t)seed >> 32);
  x = mix(x + (uint32_t)b * 0x9E3779B9u);
  x = mix(x + (uint32_t)h * 0x85EBCA77u);
  return mix(x + (uint32_t)i * 0xC2B2AE3Du);
}
// 1 / (1 - p) where an element is kept, 0 where it is dropped; `drop` is p * 2^32.
inline vf keep(uint32_t row, vi j, uint32_t drop, float scale) {
  vu x = mix((vu)j * 0x9E3779B1u + row);
  vi kept = (vi)(x >= drop);
  return (vf)(kept & (vi)as<vf>(scale));
}
