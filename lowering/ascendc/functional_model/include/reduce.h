// Sums and extremes: of a tensor, of each repeat, of each block. A repeat is summed as a binary tree, repeats in order.
#pragma once
#include "arithmetic.h"

namespace AscendC {
enum class ReduceOrder { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class ReduceKind { SUM, MAX, MIN };

// One repeat's lanes; those that take no part are absent.
template <class T> struct Gathered {
  T values[256];
  int lanes[256], n = 0;
  bool junk = false;
};
template <class T> Gathered<T> gathered(const Operation& op, const Lanes& lanes, const Operand<T>& src, int r, int from, int to) {
  Gathered<T> all;
  for (int lane = from; lane < to; lane++)
    if (lanes.on(r, lane)) {
      all.lanes[all.n] = lane;
      all.values[all.n++] = src.tensor.load(op, src.at(lanes.width, r, lane), all.junk);
    }
  return all;
}
// Pairs of neighbours are added, the sums' pairs again, each rounded to T.
template <class T> T tree_sum(const Gathered<T>& all, int width, int from) {
  T sums[256];
  std::fill_n(sums, width, T(0.0f));
  for (int i = 0; i < all.n; i++) sums[all.lanes[i] - from] = all.values[i];
  for (int n = width; n > 1; n = n / 2)
    for (int i = 0; i < n / 2; i++) sums[i] = (T)(wide(sums[2 * i]) + wide(sums[2 * i + 1]));
  return sums[0];
}
template <class T> int extreme(const Gathered<T>& all, ReduceKind kind) {
  int best = 0;
  for (int i = 1; i < all.n; i++)
    if (kind == ReduceKind::MAX ? wide(all.values[best]) < wide(all.values[i]) : wide(all.values[i]) < wide(all.values[best]))
      best = i;
  return best;
}
// An index is kept in the bits of the value's type.
template <class T> T index_bits(uint32_t i) {
  T x;
  uint16_t low = (uint16_t)i;
  memcpy((void*)&x, sizeof(T) == 2 ? (const void*)&low : (const void*)&i, sizeof(T));
  return x;
}

template <class T>
void whole_sum(const char* name, const LocalTensor<T>& dst, const Operand<T>& src, const Lanes& lanes, int dst_step) {
  Operation op(PIPE_V, name);
  types<T, half, float>(name);
  need_vector(op, dst, sizeof(T));
  need_vector(op, src.tensor);
  for (int r = 0; r < lanes.repeats; r++) {
    Gathered<T> all = gathered(op, lanes, src, r, 0, lanes.width);
    if (all.n) dst.store(op, (size_t)r * dst_step * sizeof(T), tree_sum(all, lanes.width, 0), all.junk);
  }
}
template <class T, bool isSetMask = true, class Mask>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, Mask mask, int64_t repeats, int32_t dst_step, int32_t block,
                    int32_t repeat) {
  whole_sum("WholeReduceSum", dst, Operand<T>{src, block, repeat},
            lanes_of_mask("WholeReduceSum", width_of<T>(), isSetMask, mask, repeats), dst_step);
}
template <class T, bool isSetMask = true, class Mask>
void BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int64_t repeats, Mask mask, int32_t dst_step, int32_t block,
                    int32_t repeat) {
  Operation op(PIPE_V, "BlockReduceSum");
  types<T, half, float>(op.name);
  Lanes lanes = lanes_of_mask(op.name, width_of<T>(), isSetMask, mask, repeats);
  need_vector(op, dst, 8 * sizeof(T));
  need_vector(op, src);
  int per_block = 32 / sizeof(T);
  for (int r = 0; r < lanes.repeats; r++)
    for (int b = 0; b < 8; b++) {
      Gathered<T> all = gathered(op, lanes, Operand<T>{src, block, repeat}, r, b * per_block, (b + 1) * per_block);
      if (all.n) dst.store(op, ((size_t)r * dst_step * 8 + b) * sizeof(T), tree_sum(all, per_block, b * per_block), all.junk);
    }
}
template <class T>
void whole_extreme(const char* name, ReduceKind kind, const LocalTensor<T>& dst, const Operand<T>& src, const Lanes& lanes,
                   int dst_step, ReduceOrder order) {
  Operation op(PIPE_V, name);
  types<T, half, float>(name);
  size_t unit = order == ReduceOrder::ORDER_ONLY_VALUE ? sizeof(T) : order == ReduceOrder::ORDER_ONLY_INDEX ? 4 : 2 * sizeof(T);
  need_vector(op, dst, unit);
  need_vector(op, src.tensor);
  for (int r = 0; r < lanes.repeats; r++) {
    Gathered<T> all = gathered(op, lanes, src, r, 0, lanes.width);
    if (!all.n) continue;
    int best = extreme(all, kind);
    T value = all.values[best], index = index_bits<T>(all.lanes[best]);
    size_t at = (size_t)r * dst_step * unit;
    if (order == ReduceOrder::ORDER_ONLY_VALUE || order == ReduceOrder::ORDER_ONLY_INDEX) {
      dst.store(op, at, order == ReduceOrder::ORDER_ONLY_VALUE ? value : index, all.junk);
    } else {
      bool first = order == ReduceOrder::ORDER_VALUE_INDEX;
      dst.store(op, at, first ? value : index, all.junk);
      dst.store(op, at + sizeof(T), first ? index : value, all.junk);
    }
  }
}
#define WHOLE_EXTREME(Name, kind)                                                                                              \
  template <class T, bool isSetMask = true, class Mask>                                                                        \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, Mask mask, int64_t repeats, int32_t dst_step, int32_t block, \
            int32_t repeat, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {                                              \
    whole_extreme(#Name, ReduceKind::kind, dst, Operand<T>{src, block, repeat},                                                \
                  lanes_of_mask(#Name, width_of<T>(), isSetMask, mask, repeats), dst_step, order);                             \
  }
WHOLE_EXTREME(WholeReduceMax, MAX)
WHOLE_EXTREME(WholeReduceMin, MIN)
#undef WHOLE_EXTREME

// Of a whole tensor. What the instruction does not say of its workspace is not shown: it is junk afterwards.
template <class T> void spoil(const Operation& op, const LocalTensor<T>& work, size_t elements) {
  Space& space = work.memory(op.name);
  size_t n = (elements * sizeof(T) + 31) / 32 * 32;
  if (n) space.write(op, work.place(0, n, op.name), n, true);
}
template <class T> void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& work, int32_t count) {
  Operation op(PIPE_V, "ReduceSum");
  types<T, half, float>(op.name);
  need_vector(op, dst, sizeof(T));
  need_vector(op, src);
  constexpr int w = width_of<T>();
  Lanes lanes = lanes_of_count(op.name, w, true, count);
  T total(0.0f);
  bool junk = false;
  for (int r = 0; r < lanes.repeats; r++) {
    Gathered<T> all = gathered(op, lanes, in_a_row(src, w), r, 0, w);
    T sum = tree_sum(all, w, 0);
    total = r ? (T)(wide(total) + wide(sum)) : sum;
    junk |= all.junk;
  }
  if (lanes.repeats) dst.store(op, 0, total, junk);
}
template <class T>
void reduce_extreme(const char* name, ReduceKind kind, const LocalTensor<T>& dst, const LocalTensor<T>& src,
                    const LocalTensor<T>& work, int32_t count, bool with_index) {
  Operation op(PIPE_V, name);
  types<T, half, float>(name);
  need_vector(op, dst, with_index ? 2 * sizeof(T) : sizeof(T));
  need_vector(op, src);
  need_vector(op, work);
  if (count <= 0) return;
  if (with_index && sizeof(T) == 2 && count > 65536) refuse(name, ": a half's index ends at 65535");
  int best = 0;
  bool junk = false;
  T value = src.load(op, 0, junk);
  for (int i = 1; i < count; i++) {
    T x = src.load(op, (size_t)i * sizeof(T), junk);
    if (kind == ReduceKind::MAX ? wide(value) < wide(x) : wide(x) < wide(value)) value = x, best = i;
  }
  spoil(op, work, 2 * std::max(1, count / width_of<T>()));
  dst.store(op, 0, value, junk);
  if (with_index) dst.store(op, sizeof(T), index_bits<T>(best), junk);
}
template <class T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& work, int32_t count,
               bool with_index = false) {
  reduce_extreme("ReduceMax", ReduceKind::MAX, dst, src, work, count, with_index);
}
template <class T>
void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& work, int32_t count,
               bool with_index = false) {
  reduce_extreme("ReduceMin", ReduceKind::MIN, dst, src, work, count, with_index);
}
}  // namespace AscendC
