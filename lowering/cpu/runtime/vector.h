// Lanes: W elements of float, double, int32 or int64 beside each other, in the compiler's vector types.
// A mask is a vector of int32 that holds 0 or -1. W is that of a float register: 16, 8 or 4.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#if defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__clang__) && defined(__AVX2__)
#include <immintrin.h>  // GCC's own names below spare it half a second of parsing
#endif
#define NAN __builtin_nanf("")
#define INFINITY __builtin_inff()

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int PANEL = 4;  // registers of columns in a block of a product: 6 x 4 + 4 + 1 of 32
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int PANEL = 2;  // 6 x 2 + 2 + 1 of 16
#else
constexpr int W = 4;
constexpr int PANEL = 2;
#endif

typedef int64_t i64;
typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef double vd __attribute__((vector_size(8 * W)));
typedef int64_t vl __attribute__((vector_size(8 * W)));

template <class T> struct lane { typedef T type; static constexpr bool vector = false; };
template <> struct lane<vf> { typedef float type; static constexpr bool vector = true; };
template <> struct lane<vi> { typedef int32_t type; static constexpr bool vector = true; };
template <> struct lane<vu> { typedef uint32_t type; static constexpr bool vector = true; };
template <> struct lane<vd> { typedef double type; static constexpr bool vector = true; };
template <> struct lane<vl> { typedef int64_t type; static constexpr bool vector = true; };

// The value x as a To: a scalar is repeated, lanes are converted as C converts a scalar.
template <class To, class From> inline To as(From x) {
  if constexpr (std::is_same_v<To, From>) return x;
  else if constexpr (lane<To>::vector && !lane<From>::vector) return (typename lane<To>::type)x - To{};
  else if constexpr (lane<To>::vector) return __builtin_convertvector(x, To);
  else return (To)x;
}

template <class V> inline V load(const typename lane<V>::type* p) { V x; memcpy(&x, p, sizeof(V)); return x; }
template <class V> inline void store(typename lane<V>::type* p, V x) { memcpy(p, &x, sizeof(V)); }

#if defined(__clang__) && defined(__AVX512F__)
inline vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline vf gather_floats(const float* p, vi at) { return (vf)_mm512_i32gather_ps((__m512i)at, p, 4); }
inline vi gather_integers(const int32_t* p, vi at) { return (vi)_mm512_i32gather_epi32((__m512i)at, p, 4); }
inline vf sqrt_(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
#elif defined(__clang__) && defined(__AVX2__)
inline vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline vf gather_floats(const float* p, vi at) { return (vf)_mm256_i32gather_ps(p, (__m256i)at, 4); }
inline vi gather_integers(const int32_t* p, vi at) { return (vi)_mm256_i32gather_epi32((const int*)p, (__m256i)at, 4); }
inline vf sqrt_(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
#elif defined(__AVX512F__)
inline vf fma(vf a, vf b, vf c) { return __builtin_ia32_vfmaddps512_mask(a, b, c, (uint16_t)-1, 4); }
inline vf gather_floats(const float* p, vi at) { return __builtin_ia32_gathersiv16sf(vf{}, p, at, (uint16_t)-1, 4); }
inline vi gather_integers(const int32_t* p, vi at) { return __builtin_ia32_gathersiv16si(vi{}, p, at, (uint16_t)-1, 4); }
inline vf sqrt_(vf x) { return __builtin_ia32_sqrtps512_mask(x, vf{}, (uint16_t)-1, 4); }
#elif defined(__AVX2__)
inline vf fma(vf a, vf b, vf c) { return __builtin_ia32_vfmaddps256(a, b, c); }
inline vf gather_floats(const float* p, vi at) { return __builtin_ia32_gathersiv8sf(vf{}, p, at, (vf)(vi{} - 1), 4); }
inline vi gather_integers(const int32_t* p, vi at) { return __builtin_ia32_gathersiv8si(vi{}, p, at, vi{} - 1, 4); }
inline vf sqrt_(vf x) { return __builtin_ia32_sqrtps256(x); }
#else
#if defined(__ARM_NEON) && defined(__aarch64__)
inline vf fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
inline vf fma(vf a, vf b, vf c) { return a * b + c; }
#endif
inline vf gather_floats(const float* p, vi at) { vf x; for (int l = 0; l < W; l++) x[l] = p[at[l]]; return x; }
inline vi gather_integers(const int32_t* p, vi at) { vi x; for (int l = 0; l < W; l++) x[l] = p[at[l]]; return x; }
inline vf sqrt_(vf x) { for (int l = 0; l < W; l++) x[l] = __builtin_sqrtf(x[l]); return x; }
#endif

inline vi iota() { vi x; for (int l = 0; l < W; l++) x[l] = l; return x; }

// ---- masks
inline bool mask(bool x) { return x; }
inline vi mask(vi x) { return x; }
inline vi mask(vl x) { return __builtin_convertvector(x, vi); }
template <class To> inline To lanes(bool x) { if constexpr (std::is_same_v<To, bool>) return x; else return vi{} - (int32_t)x; }
template <class To> inline To lanes(vi x) { return x; }
inline vl wide(vi m) { return __builtin_convertvector(m, vl); }

inline float where(bool m, float a, float b) { return m ? a : b; }
inline double where(bool m, double a, double b) { return m ? a : b; }
inline i64 where(bool m, i64 a, i64 b) { return m ? a : b; }
inline vf where(vi m, vf a, vf b) { return m ? a : b; }
inline vi where(vi m, vi a, vi b) { return m ? a : b; }
inline vd where(vi m, vd a, vd b) { return wide(m) ? a : b; }
inline vl where(vi m, vl a, vl b) { return wide(m) ? a : b; }
// 1 where the mask is true, 0 elsewhere
template <class To> inline To number(bool m) { return as<To>((typename lane<To>::type)m); }
template <class To> inline To number(vi m) {
  if constexpr (std::is_same_v<To, vf>) return (vf)(m & (vi)as<vf>(1.0f));
  else return as<To>(-m);
}
inline bool any(vi m) {
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__clang__)
  return __builtin_ia32_movmskps256((vf)m) != 0;
#else
  int64_t words[W / 2], found = 0;
  memcpy(words, &m, sizeof(m));
  for (int l = 0; l < W / 2; l++) found |= words[l];
  return found != 0;
#endif
}
// Do the lanes only grow, or only fall?
inline bool ordered(vi x) {
  int32_t y[W + 1];
  memcpy(y, &x, sizeof(x));
  y[W] = y[W - 1];
  vi next = load<vi>(y + 1);
  return !any(next < x) || !any(next > x);
}

// ---- half precision: lanes of float, rounded after every operation
inline float round_bf16(float x) {
  uint32_t u; memcpy(&u, &x, 4);
  if (x != x) return x;
  u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000u;
  memcpy(&x, &u, 4); return x;
}
inline vf round_bf16(vf x) {
  vu u = (vu)x;
  vu r = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000u;
  return (x != x) ? x : (vf)r;
}
inline float round_f16(float x) { return (float)(_Float16)x; }
inline vf round_f16(vf x) { for (int l = 0; l < W; l++) x[l] = round_f16((float)x[l]); return x; }

// Elements of tensors. bf16 has no C type here.
struct bf16 { uint16_t bits; };
typedef _Float16 f16;
inline float element(float x) { return x; }
inline double element(double x) { return x; }
inline float element(f16 x) { return (float)x; }
inline float element(bf16 x) { uint32_t u = (uint32_t)x.bits << 16; float y; memcpy(&y, &u, 4); return y; }
inline i64 element(i64 x) { return x; }
inline i64 element(int32_t x) { return x; }
inline i64 element(int16_t x) { return x; }
inline i64 element(int8_t x) { return x; }
inline i64 element(uint8_t x) { return x; }
inline bool element(bool x) { return x; }

// W elements as floats.
inline vf widened(const float* p) { return load<vf>(p); }
inline vf widened(const bf16* p) {
  typedef uint16_t half __attribute__((vector_size(2 * W)));
  half x;
  memcpy(&x, p, sizeof(x));
  return (vf)(__builtin_convertvector(x, vu) << 16);
}
inline vf widened(const f16* p) {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__F16C__))
  typedef short half __attribute__((vector_size(2 * W)));
  half x;
  memcpy(&x, p, sizeof(x));
#if defined(__clang__) && defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)x);
#elif defined(__clang__)
  return (vf)_mm256_cvtph_ps((__m128i)x);
#elif defined(__AVX512F__)
  return (vf)__builtin_ia32_vcvtph2ps512_mask(x, vf{}, -1, 4);  // 4: rounded as everything is
#else
  return (vf)__builtin_ia32_vcvtph2ps256(x);
#endif
#else
  vf y;
  for (int l = 0; l < W; l++) y[l] = (float)p[l];
  return y;
#endif
}

inline void put(float* p, float x) { *p = x; }
inline void put(f16* p, float x) { *p = (f16)x; }
inline void put(bf16* p, float x) { x = round_bf16(x); uint32_t u; memcpy(&u, &x, 4); p->bits = u >> 16; }

// W floats as elements, each rounded once.
inline void narrowed(bf16* p, vf x) {
  typedef uint16_t half __attribute__((vector_size(2 * W)));
  half y = __builtin_convertvector((vu)round_bf16(x) >> 16, half);
  memcpy(p, &y, sizeof(y));
}
inline void narrowed(f16* p, vf x) {
#if defined(__clang__) && defined(__AVX512F__)
  __m256i y = _mm512_cvtps_ph((__m512)x, 0);
  memcpy(p, &y, sizeof(y));
#elif defined(__AVX512F__)
  typedef short half __attribute__((vector_size(2 * W)));
  half y = __builtin_ia32_vcvtps2ph512_mask(x, 0, half{}, -1);
  memcpy(p, &y, sizeof(y));
#elif defined(__clang__) && defined(__AVX2__) && defined(__F16C__)
  __m128i y = _mm256_cvtps_ph((__m256)x, 0);
  memcpy(p, &y, sizeof(y));
#elif defined(__AVX2__) && defined(__F16C__)
  typedef short half __attribute__((vector_size(2 * W)));
  half y = __builtin_ia32_vcvtps2ph256(x, 0);
  memcpy(p, &y, sizeof(y));
#else
  for (int l = 0; l < W; l++) put(p + l, (float)x[l]);
#endif
}

// ---- loads of leaves; places are clamped by the caller
template <class V, class T> inline V gather(const T* p, vi at) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<V, vf>) return gather_floats(p, at);
  if constexpr (std::is_same_v<T, int32_t> && std::is_same_v<V, vi>) return gather_integers(p, at);
  V x;
  for (int l = 0; l < W; l++) {
    auto y = element(p[at[l]]);
    if constexpr (std::is_same_v<decltype(y), bool>) x[l] = -(int32_t)y; else x[l] = y;
  }
  return x;
}
// The same where the places are often one place.
template <class V, class T> inline V lookup(const T* p, vi at) {
  if (!any(at != at[0])) return as<V>(element(p[at[0]]));
  return gather<V>(p, at);
}
template <class V, class T> inline V gather(const T* p, vl at) {
  V x;
  for (int l = 0; l < W; l++) {
    auto y = element(p[at[l]]);
    if constexpr (std::is_same_v<decltype(y), bool>) x[l] = -(int32_t)y; else x[l] = y;
  }
  return x;
}
template <class V, class T> inline V lookup(const T* p, vl at) { return gather<V>(p, at); }
// Places at, at + 1, ...: one load where they lie inside.
template <class V, class T, class I> inline V run(const T* p, I at, i64 extent, bool contiguous) {
  i64 first = at[0];
  if (contiguous && first >= 0 && first + W <= extent) {
    if constexpr (std::is_same_v<T, typename lane<V>::type>) return load<V>(p + first);
    V x;
    for (int l = 0; l < W; l++) {
      auto y = element(p[first + l]);
      if constexpr (std::is_same_v<decltype(y), bool>) x[l] = -(int32_t)y; else x[l] = y;
    }
    return x;
  }
  V x;
  for (int l = 0; l < W; l++) {
    i64 place = at[l] < 0 ? 0 : at[l] >= extent ? extent - 1 : at[l];
    auto y = element(p[place]);
    if constexpr (std::is_same_v<decltype(y), bool>) x[l] = -(int32_t)y; else x[l] = y;
  }
  return x;
}
template <class T> inline T least(T a, T b) { return a < b ? a : b; }
template <class T> inline T most(T a, T b) { return a < b ? b : a; }
inline float sum(vf x) { float s = 0; for (int l = 0; l < W; l++) s += x[l]; return s; }
