// DataCopy and DataCopyPad between global memory and the buffers, with their alignment; atomics on the way out.
#pragma once
#include "sync.h"

namespace AscendC {
struct DataCopyParams {
  uint16_t blockCount = 1, blockLen = 0, srcStride = 0, dstStride = 0;  // blocks of 32 bytes
  DataCopyParams() = default;
  DataCopyParams(uint16_t count, uint16_t length, uint16_t from, uint16_t to)
      : blockCount(count), blockLen(length), srcStride(from), dstStride(to) {}
};
struct DataCopyExtParams {
  uint16_t blockCount = 1;
  uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;  // bytes; the buffer's stride in blocks of 32 bytes
  DataCopyExtParams() = default;
  DataCopyExtParams(uint16_t count, uint32_t length, uint32_t from, uint32_t to, uint32_t reserved)
      : blockCount(count), blockLen(length), srcStride(from), dstStride(to), rsv(reserved) {}
};
template <class T> struct DataCopyPadExtParams {
  bool isPad = false;
  uint8_t leftPadding = 0, rightPadding = 0;
  T paddingValue = 0;
  DataCopyPadExtParams() = default;
  DataCopyPadExtParams(bool pad, uint8_t left, uint8_t right, T value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
};
struct DataCopyPadParams {
  bool isPad = false;
  uint8_t leftPadding = 0, rightPadding = 0;
  uint64_t paddingValue = 0;
  DataCopyPadParams() = default;
  DataCopyPadParams(bool pad, uint8_t left, uint8_t right, uint64_t value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
};

inline void need_core(const Operation& op, Core kind) {
  if (op.agent.core != kind) refuse(op.name, " is not an instruction of a ", kind == Core::CUBE ? "vector" : "cube", " core");
}
inline void need_buffer(const Operation& op, const Space& space) {
  need_core(op, &space == &op.agent.ub ? Core::VECTOR : Core::CUBE);
}

// Bytes from one memory to another; what is junk stays junk, byte by byte.
inline void move(const Operation& op, Space& to, size_t to_at, Space& from, size_t from_at, size_t n) {
  if (!n) return;
  bool junk = false;
  from.read(op, from_at, n, junk);
  to.write(op, to_at, n, false);
  memmove(to.bytes + to_at, from.bytes + from_at, n);
  if (junk) std::copy_n(from.state.begin() + from_at, n, to.state.begin() + to_at);
}
template <class T> T combined(Atomic how, T a, T b) {
  if (how == Atomic::ADD) return (T)(a + b);
  return (how == Atomic::MAX) == (a < b) ? b : a;
}
template <class T> void move_out(const Operation& op, Space& to, size_t to_at, Space& from, size_t from_at, size_t n) {
  Atomic how = op.agent.atomic;
  if (how == Atomic::NONE) return move(op, to, to_at, from, from_at, n);
  if (!n) return;
  bool junk = false;
  from.read(op, from_at, n, junk);
  if (junk) refuse(op.name, " adds junk to ", to.name, " (padding that a copy added)");
  for (size_t b = to_at; b < to_at + n && b < to.size; b++)
    if (to.state[b] != WRITTEN) refuse(op.name, " updates ", to.name, " at byte ", b, ", which no one wrote");
  to.write(op, to_at, n, false, true);
  for (size_t i = 0; i < n; i += sizeof(T)) {
    T a, b;
    memcpy((void*)&a, to.bytes + to_at + i, sizeof(T));
    memcpy((void*)&b, from.bytes + from_at + i, sizeof(T));
    a = combined(how, a, b);
    memcpy(to.bytes + to_at + i, (const void*)&a, sizeof(T));
  }
}

// One element on its way out.
template <class T> void put_out(const Operation& op, Space& to, size_t at, T x, bool junk) {
  if (at + sizeof(T) > to.size) refuse(op.name, " writes ", to.name, " at byte ", at, " of ", to.size, " (out of bounds)");
  if (op.agent.atomic != Atomic::NONE) {
    if (junk || to.state[at] != WRITTEN)
      refuse(op.name, " updates ", to.name, " at byte ", at, junk ? " with junk" : ", which no one wrote");
    T old;
    memcpy((void*)&old, to.bytes + at, sizeof(T));
    x = combined(op.agent.atomic, old, x);
  }
  to.write(op, at, sizeof(T), junk, op.agent.atomic != Atomic::NONE);
  memcpy(to.bytes + at, (const void*)&x, sizeof(T));
}

template <class T> void need_whole_blocks(const char* name, size_t count) {
  if (count * sizeof(T) % 32) refuse(name, ": ", count, " elements are ", count * sizeof(T), " bytes, no multiple of 32");
}

// ------------------------------------------------------------------------------------------------ aligned
template <class T> void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& params) {
  Operation op(PIPE_MTE2, "DataCopy");
  Space &to = dst.aligned("DataCopy").memory("DataCopy"), &source = src.memory("DataCopy");
  need_buffer(op, to);
  size_t block = params.blockLen * 32;
  if (params.blockCount < 1 || params.blockCount > 4095) refuse("DataCopy: blockCount ", params.blockCount, " is not in 1 to 4095");
  for (size_t i = 0; i < params.blockCount && block; i++) {
    size_t from = i * (block + params.srcStride * 32) / sizeof(T), n = block / sizeof(T);
    move(op, to, dst.place(i * (block + params.dstStride * 32), block, "DataCopy"), source,
         src.place(from, n, "DataCopy", source.slack), block);
  }
}
template <class T> void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params) {
  Operation op(PIPE_MTE3, "DataCopy");
  Space& from = src.aligned("DataCopy").memory("DataCopy");
  if (&from != &op.agent.ub && &from != &op.agent.l1)
    refuse("DataCopy: no path from ", from.name, " to global memory (Fixpipe has L0C's)");
  need_buffer(op, from);
  size_t block = params.blockLen * 32;
  if (params.blockCount < 1 || params.blockCount > 4095) refuse("DataCopy: blockCount ", params.blockCount, " is not in 1 to 4095");
  for (size_t i = 0; i < params.blockCount && block; i++) {
    size_t to = i * (block + params.dstStride * 32) / sizeof(T), n = block / sizeof(T);
    move_out<T>(op, dst.memory("DataCopy"), dst.place(to, n, "DataCopy"), from,
                src.place(i * (block + params.srcStride * 32), block, "DataCopy"), block);
  }
}
// Inside the unified buffer: an instruction of the vector unit.
template <class T> void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params) {
  Space &to = dst.aligned("DataCopy").memory("DataCopy"), &from = src.aligned("DataCopy").memory("DataCopy");
  if (&to != &core().ub || &from != &core().ub) refuse("DataCopy: no path from ", from.name, " to ", to.name);
  Operation op(PIPE_V, "DataCopy");
  need_core(op, Core::VECTOR);
  size_t block = params.blockLen * 32;
  for (size_t i = 0; i < params.blockCount && block; i++)
    move(op, to, dst.place(i * (block + params.dstStride * 32), block, "DataCopy"), from,
         src.place(i * (block + params.srcStride * 32), block, "DataCopy"), block);
}
template <class T> DataCopyParams whole(uint32_t count) {
  need_whole_blocks<T>("DataCopy", count);
  DataCopyParams params;
  if (count * sizeof(T) / 32 > 65535) refuse("DataCopy: ", count, " elements are more than 65535 blocks");
  params.blockLen = count * sizeof(T) / 32;
  return params;
}
template <class T> void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count) {
  DataCopy(dst, src, whole<T>(count));
}
template <class T> void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count) {
  DataCopy(dst, src, whole<T>(count));
}
template <class T> void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count) {
  DataCopy(dst, src, whole<T>(count));
}

// ---------------------------------------------------------------------------------------------- unaligned
template <class T> void need_ext(const DataCopyExtParams& params) {
  if (params.blockCount > 4095) refuse("DataCopyPad: blockCount ", params.blockCount, " is not in 0 to 4095");
  if (params.blockLen > 2097151) refuse("DataCopyPad: blockLen ", params.blockLen, " is not in 0 to 2097151");
  if (params.blockLen % sizeof(T))
    refuse("DataCopyPad: blockLen ", params.blockLen, " is no multiple of sizeof(", type_name<T>(), ")");
}
template <class T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& params,
                 const DataCopyPadExtParams<T>& pad) {
  Operation op(PIPE_MTE2, "DataCopyPad");
  need_ext<T>(params);
  Space& to = dst.aligned("DataCopyPad").memory("DataCopyPad");
  need_buffer(op, to);
  size_t left = pad.leftPadding * sizeof(T), right = pad.rightPadding * sizeof(T), n = params.blockLen;
  if (left > 32 || right > 32) refuse("DataCopyPad: a padding of ", std::max(left, right), " bytes is more than 32");
  if (pad.isPad && sizeof(T) == 8 && (double)pad.paddingValue != 0)
    refuse("DataCopyPad: the padding value of a 64-bit type must be 0");
  size_t row = (left + n + right + 31) / 32 * 32;
  for (size_t i = 0; i < params.blockCount && n; i++) {
    size_t p = dst.place(i * (row + (size_t)params.dstStride * 32), row, "DataCopyPad");
    size_t end = src.memory("DataCopyPad").size + src.space->slack;
    size_t start = src.base + i * (n + (size_t)params.srcStride);
    if (i * (n + (size_t)params.srcStride) + n > src.length * sizeof(T) || start + n > end)
      refuse("DataCopyPad: block ", i, " of ", n, " bytes is not inside the GlobalTensor of ", src.length,
             " elements (out of bounds)");
    to.write(op, p, row, true);
    if (pad.isPad && (left || right)) {
      for (size_t b = 0; b < row; b += sizeof(T))
        if (b < left || b >= left + n)
          memcpy(to.bytes + p + b, (const void*)&pad.paddingValue, sizeof(T)),
              std::fill_n(to.state.begin() + p + b, sizeof(T), WRITTEN);
    } else if (!left && !right) {
      for (size_t b = n; b < row; b++) to.bytes[p + b] = src.space->bytes[start + b % sizeof(T)];
    }
    move(op, to, p + left, *src.space, start, n);
  }
}
template <class T> void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& params) {
  Operation op(PIPE_MTE3, "DataCopyPad");
  need_ext<T>(params);
  Space& from = src.aligned("DataCopyPad").memory("DataCopyPad");
  need_buffer(op, from);
  size_t n = params.blockLen, row = (n + 31) / 32 * 32;
  for (size_t i = 0; i < params.blockCount && n; i++) {
    size_t offset = i * (n + (size_t)params.dstStride);
    if (offset + n > dst.length * sizeof(T))
      refuse("DataCopyPad: block ", i, " of ", n, " bytes is not inside the GlobalTensor of ", dst.length,
             " elements (out of bounds)");
    move_out<T>(op, dst.memory("DataCopyPad"), dst.base + offset, from,
                src.place(i * (row + (size_t)params.srcStride * 32), n, "DataCopyPad"), n);
  }
}
inline DataCopyExtParams extended(const DataCopyParams& p) { return {p.blockCount, p.blockLen, p.srcStride, p.dstStride, 0}; }
template <class T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& params, const DataCopyPadParams& pad) {
  T value;
  memcpy((void*)&value, &pad.paddingValue, sizeof(T));
  DataCopyPad(dst, src, extended(params), DataCopyPadExtParams<T>(pad.isPad, pad.leftPadding, pad.rightPadding, value));
}
template <class T> void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params) {
  DataCopyPad(dst, src, extended(params));
}
}  // namespace AscendC
