// Memory of a call, and how a call ends.
#pragma once
#include "vector.h"

enum Status : i64 { DONE = 0, NO_MEMORY = 1, TOO_WIDE = 2 };

template <class T> struct Array {
  T* data = nullptr;
  bool allocate(i64 n) {
    free(data);
    size_t bytes = ((size_t)(n + 64) * sizeof(T) + 127) / 64 * 64;  // whole vectors may be read behind the end
    data = (T*)aligned_alloc(64, bytes);
    if (data) memset((char*)(data + n), 0, bytes - n * sizeof(T));
    return data != nullptr;
  }
  bool zeros(i64 n) { bool done = allocate(n); if (done) memset((void*)data, 0, n * sizeof(T)); return done; }
  T& operator[](i64 i) { return data[i]; }
  const T& operator[](i64 i) const { return data[i]; }
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { free(data); }
};
inline i64 round_up(i64 n, i64 step) { return (n + step - 1) / step * step; }
