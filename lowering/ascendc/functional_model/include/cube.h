// The cube core: Nd2Nz into L1, fractals into L0A and L0B, Mmad into L0C, Fixpipe out of it.
//
// A fractal is 16 rows of 32 bytes (L0C: 16 x 16 elements of 4 bytes). L1 holds fractals column of fractals by column
// (Nz), L0A row by row (Zz), L0B row by row with each fractal transposed (Zn), L0C column by column (Nz).
#pragma once
#include "copy.h"

enum QuantMode_t { NoQuant, F322F16, F322BF16 };

namespace AscendC {
enum class CO2Layout : uint8_t { NZ, ROW_MAJOR, COLUMN_MAJOR };
struct FixpipeConfig { CO2Layout format; };
constexpr FixpipeConfig CFG_NZ = {CO2Layout::NZ}, CFG_ROW_MAJOR = {CO2Layout::ROW_MAJOR}, CFG_COLUMN_MAJOR = {CO2Layout::COLUMN_MAJOR};

struct Nd2NzParams {
  uint16_t ndNum = 0, nValue = 0, dValue = 0, srcNdMatrixStride = 0, srcDValue = 0, dstNzC0Stride = 0, dstNzNStride = 0,
           dstNzMatrixStride = 0;
  Nd2NzParams() = default;
  Nd2NzParams(uint16_t matrices, uint16_t rows, uint16_t columns, uint16_t source_step, uint16_t source_row, uint16_t column_step,
              uint16_t row_step, uint16_t target_step)
      : ndNum(matrices), nValue(rows), dValue(columns), srcNdMatrixStride(source_step), srcDValue(source_row),
        dstNzC0Stride(column_step), dstNzNStride(row_step), dstNzMatrixStride(target_step) {}
};
struct LoadData2DParams {
  uint16_t startIndex = 0, dstGap = 0, srcStride = 0;
  bool ifTranspose = false;
  uint8_t repeatTimes = 0, sid = 0, addrMode = 0;
  LoadData2DParams() = default;
  LoadData2DParams(uint16_t start, uint8_t repeats, uint16_t step, uint8_t id, uint16_t gap, bool transpose, uint8_t mode)
      : startIndex(start), dstGap(gap), srcStride(step), ifTranspose(transpose), repeatTimes(repeats), sid(id), addrMode(mode) {}
};
struct MmadParams {
  uint16_t m = 0, n = 0, k = 0;
  bool isBias = false;
  int32_t fmOffset = 0;
  bool enSsparse = false, enWinogradA = false, enWinogradB = false;
  uint8_t unitFlag = 0;
  bool kDirectionAlign = false, cmatrixSource = false, cmatrixInitVal = true;
  MmadParams() = default;
  MmadParams(uint16_t rows, uint16_t columns, uint16_t inner, bool bias, int32_t offset, bool sparse, bool winograd_a, bool winograd_b)
      : m(rows), n(columns), k(inner), isBias(bias), fmOffset(offset), enSsparse(sparse), enWinogradA(winograd_a),
        enWinogradB(winograd_b) {}
  MmadParams(uint16_t rows, uint16_t columns, uint16_t inner, uint8_t unit_flag, bool source, bool initial)
      : m(rows), n(columns), k(inner), unitFlag(unit_flag), cmatrixSource(source), cmatrixInitVal(initial) {}
};
struct FixpipeParamsV220 {
  uint16_t nSize = 0, mSize = 0, srcStride = 0;
  uint32_t dstStride = 0;
  QuantMode_t quantPre = NoQuant;
  uint64_t deqScalar = 0;
  uint16_t ndNum = 1, srcNdStride = 0, dstNdStride = 0;
  bool reluEn = false;
  uint8_t unitFlag = 0;
  bool isChannelSplit = false;
  FixpipeParamsV220() = default;
  FixpipeParamsV220(uint16_t columns, uint16_t rows, uint16_t from, uint32_t to, bool relu)
      : nSize(columns), mSize(rows), srcStride(from), dstStride(to), reluEn(relu) {}
};

inline void need_memory(const Operation& op, const Space& space, const Space& wanted, const char* what) {
  need_core(op, Core::CUBE);
  if (&space != &wanted) refuse(op.name, ": ", what, " lies in ", space.name, ", not in ", wanted.name);
}

// Rows of a matrix become fractals; a row's end is filled with zeros to 32 bytes.
template <class T> void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& p) {
  Operation op(PIPE_MTE2, "DataCopy(Nd2Nz)");
  Space &to = dst.aligned(op.name).memory(op.name), &from = src.memory(op.name);
  need_memory(op, to, op.agent.l1, "the result");
  if (p.ndNum > 4095 || p.nValue > 16384 || p.dstNzC0Stride < 1 || p.dstNzC0Stride > 16384 || p.dstNzNStride < 1 ||
      p.dstNzNStride > 16384 || p.srcDValue < 1)
    refuse(op.name, ": a parameter is out of its range");
  size_t c0 = 32 / sizeof(T);
  for (size_t matrix = 0; matrix < p.ndNum; matrix++)
    for (size_t row = 0; row < p.nValue; row++)
      for (size_t column = 0; column < p.dValue; column += c0) {
        size_t n = std::min<size_t>(c0, p.dValue - column) * sizeof(T);
        size_t at = dst.place(matrix * p.dstNzMatrixStride * sizeof(T) + (column / c0 * p.dstNzC0Stride + row * p.dstNzNStride) * 32,
                              32, op.name);
        move(op, to, at, from, src.place(matrix * p.srcNdMatrixStride + row * p.srcDValue + column, n / sizeof(T), op.name), n);
        if (n == 32) continue;
        to.write(op, at + n, 32 - n, false);
        std::fill_n(to.bytes + at + n, 32 - n, (uint8_t)0);
      }
}

// Whole fractals. What no one wrote of a fractal's edge is junk there; a fractal that no one wrote at all is an error.
template <class T> void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2DParams& p) {
  Operation op(PIPE_MTE1, "LoadData");
  Space &to = dst.aligned(op.name, 512).memory(op.name), &from = src.aligned(op.name).memory(op.name);
  need_memory(op, to, &to == &op.agent.l0b ? op.agent.l0b : op.agent.l0a, "the result");
  need_memory(op, from, op.agent.l1, "the source");
  if (p.ifTranspose && sizeof(T) != 2) refuse("LoadData: only 16-bit types are transposed, not ", type_name<T>());
  if (p.addrMode) refuse("LoadData: addrMode 1 is not supported from L1");
  for (size_t r = 0; r < p.repeatTimes; r++) {
    size_t source = src.place((p.startIndex + r * p.srcStride) * 512, 512, op.name),
           target = dst.place(r * (1 + p.dstGap) * 512, 512, op.name);
    if (std::all_of(from.state.begin() + source, from.state.begin() + source + 512, [](uint8_t s) { return s == UNWRITTEN; }))
      refuse("LoadData reads a fractal of L1 at byte ", source, ", which no one wrote");
    from.order_read(op, source, 512);
    to.write(op, target, 512, false);
    size_t unit = p.ifTranspose ? 2 : 1, side = p.ifTranspose ? 16 : 1;
    for (size_t i = 0; i < 512 / unit; i++) {
      size_t other = p.ifTranspose ? i % side * side + i / side : i;
      for (size_t b = 0; b < unit; b++) {
        to.bytes[target + i * unit + b] = from.bytes[source + other * unit + b];
        to.state[target + i * unit + b] = from.state[source + other * unit + b] == WRITTEN ? WRITTEN : JUNK;
      }
    }
  }
}

template <class A, class B, class C> constexpr bool multiplies() {
  if (std::is_same_v<C, int32_t>) return std::is_same_v<A, int8_t> && std::is_same_v<B, int8_t>;
  return std::is_same_v<C, float> && std::is_same_v<A, B> && (is_short<A> || std::is_same_v<A, float>);
}
inline size_t fractals(size_t n, size_t side) { return (n + side - 1) / side; }

template <class C, class A, class B>
void need_product(const Operation& op, const LocalTensor<C>& dst, const LocalTensor<A>& left, const LocalTensor<B>& right,
                  const MmadParams& p) {
  if (!multiplies<A, B, C>()) refuse("Mmad: ", type_name<A>(), " times ", type_name<B>(), " into ", type_name<C>(), " is not supported");
  need_memory(op, dst.aligned(op.name, 1024).memory(op.name), op.agent.l0c, "the result");
  need_memory(op, left.aligned(op.name, 512).memory(op.name), op.agent.l0a, "the left matrix");
  need_memory(op, right.aligned(op.name, 512).memory(op.name), op.agent.l0b, "the right matrix");
  if (p.m > 4095 || p.n > 4095 || p.k > 4095) refuse("Mmad: a size above 4095");
  if (p.m == 1) refuse("Mmad: m = 1 switches to matrix times vector, whose left matrix is not in fractals; it is not modelled");
  if (p.unitFlag || p.cmatrixSource) refuse("Mmad: unitFlag and the bias table are not modelled");
}
// The elements of an operand, its inner index last: rows of the left matrix, columns of the right one.
template <class Sum, class T, class Fractal>
std::vector<Sum> operand(const Operation& op, const LocalTensor<T>& from, size_t n, size_t inner, bool& junk, Fractal fractal) {
  size_t c0 = 32 / sizeof(T);
  std::vector<Sum> all(n * inner);
  for (size_t i = 0; i < n; i++)
    for (size_t k = 0; k < inner; k++)
      all[i * inner + k] = (Sum)from.load(op, fractal(i / 16, k / c0) * 512 + (i % 16 * c0 + k % c0) * sizeof(T), junk);
  return all;
}

// C[m, n] (+)= A[m, k] B[k, n]; junk at the edges of fractals, behind m, n and k, is not looked at.
template <class C, class A, class B>
void Mmad(const LocalTensor<C>& dst, const LocalTensor<A>& left, const LocalTensor<B>& right, const MmadParams& p) {
  Operation op(PIPE_M, "Mmad");
  need_product(op, dst, left, right, p);
  op.paced = (p.m / 16) * (p.n / 16) >= 10;  // smaller products need PipeBarrier<PIPE_M> between them
  if (!p.m || !p.n || !p.k) return;
  using Sum = std::conditional_t<std::is_same_v<C, int32_t>, int32_t, float>;
  size_t deep = fractals(p.k, 32 / sizeof(A)), wide = fractals(p.n, 16), high = fractals(p.m, 16);
  bool junk = false, added = false;
  std::vector<Sum> a = operand<Sum>(op, left, p.m, p.k, junk, [deep](size_t i, size_t k) { return i * deep + k; });
  std::vector<Sum> b = operand<Sum>(op, right, p.n, p.k, junk, [wide](size_t j, size_t k) { return k * wide + j; });
  if (junk) refuse("Mmad multiplies junk inside m = ", p.m, ", n = ", p.n, ", k = ", p.k);
  std::vector<C> results((size_t)p.m * p.n);
  auto place = [high](size_t i, size_t j) { return ((j / 16 * high + i / 16) * 256 + i % 16 * 16 + j % 16) * sizeof(C); };
  for (size_t i = 0; i < p.m; i++)
    for (size_t j = 0; j < p.n; j++) {
      Sum sum = p.isBias || !p.cmatrixInitVal ? (Sum)dst.load(op, place(i, j), added) : Sum(0);
      for (size_t k = 0; k < p.k; k++) sum += a[i * p.k + k] * b[j * p.k + k];
      results[i * p.n + j] = (C)sum;
    }
  if (added) refuse("Mmad adds to junk");
  size_t bytes = high * wide * 256 * sizeof(C);
  dst.memory(op.name).write(op, dst.place(0, bytes, op.name), bytes, true);
  for (size_t i = 0; i < p.m; i++)
    for (size_t j = 0; j < p.n; j++) dst.store(op, place(i, j), results[i * p.n + j], false);
}

template <class T, class U> T fixed(U x, bool relu) {
  if (relu && x < 0) x = 0;
  if constexpr (is_short<T>) return T((float)x);
  else return (T)x;
}
// L0C -> rows of a matrix in global memory, in the accumulator's type, half or bfloat16_t.
template <class T, class U, const FixpipeConfig& config = CFG_ROW_MAJOR>
void Fixpipe(const GlobalTensor<T>& dst, const LocalTensor<U>& src, const FixpipeParamsV220& p) {
  static_assert(config.format == CO2Layout::ROW_MAJOR, "only rows (CFG_ROW_MAJOR) are modelled");
  Operation op(PIPE_FIX, "Fixpipe");
  need_memory(op, src.aligned(op.name, 64).memory(op.name), op.agent.l0c, "the source");
  QuantMode_t wanted = std::is_same_v<T, half> ? F322F16 : std::is_same_v<T, bfloat16_t> ? F322BF16 : NoQuant;
  if (!std::is_same_v<T, U> && !(is_short<T> && std::is_same_v<U, float>))
    refuse("Fixpipe: from ", type_name<U>(), " to ", type_name<T>(), " is not modelled");
  if (p.quantPre != wanted) refuse("Fixpipe: quantPre ", (int)p.quantPre, " does not give ", type_name<T>());
  if (p.nSize > 4095) refuse("Fixpipe: nSize ", p.nSize, " is above 4095");
  if (p.mSize > 8192) refuse("Fixpipe: mSize ", p.mSize, " is above 8192");
  if (p.unitFlag || p.isChannelSplit) refuse("Fixpipe: unitFlag and channel split are not modelled");
  if (p.dstStride == 0) refuse("Fixpipe: dstStride is 0");
  if (p.srcNdStride > 512) refuse("Fixpipe: srcNdStride ", p.srcNdStride, " is above 512");
  Space& to = dst.memory(op.name);
  for (size_t matrix = 0; matrix < p.ndNum; matrix++)
    for (size_t i = 0; i < p.mSize; i++)
      for (size_t j = 0; j < p.nSize; j++) {
        bool junk = false;
        size_t from = (matrix * p.srcNdStride * 256 + j / 16 * p.srcStride * 16 + i * 16 + j % 16) * sizeof(U);
        T x = fixed<T>(src.load(op, from, junk), p.reluEn);
        put_out(op, to, dst.place(matrix * p.dstNdStride + i * p.dstStride + j, 1, op.name), x, junk);
      }
}
}  // namespace AscendC
