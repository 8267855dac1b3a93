// GlobalTensor and LocalTensor: a type, a place in a memory, a length. Every access is checked there.
#pragma once
#include "agent.h"

// The arguments of the launch, each a memory of its own.
inline std::vector<std::unique_ptr<Space>>& global_memory() {
  static std::vector<std::unique_ptr<Space>> all;
  return all;
}

// A piece that a queue or a TBuf gave away. A handle from before its FreeTensor is dead.
struct Piece {
  Space* space = nullptr;
  size_t at = 0, bytes = 0;
  uint32_t life = 0;
  enum { FREE, HELD, QUEUED } where = FREE;
  Clock enqueued, freed;  // what the queue's own flags pass on
};

template <class T> using Plain = std::remove_const_t<T>;

// operator() of a tensor: a scalar that is read and written where it lies.
template <class Tensor, class T> struct Scalar {
  const Tensor& tensor;
  uint64_t index;
  operator T() const { return tensor.GetValue(index); }
  const Scalar& operator=(T x) const { tensor.SetValue(index, x); return *this; }
  const Scalar& operator=(const Scalar& x) const { return *this = (T)x; }
  const Scalar& operator+=(T x) const { return *this = (T)((T)*this + x); }
  const Scalar& operator-=(T x) const { return *this = (T)((T)*this - x); }
  const Scalar& operator*=(T x) const { return *this = (T)((T)*this * x); }
};

template <class T> T get_scalar(Space& space, size_t at, const char* name) {
  Operation op(PIPE_S, name);
  bool junk = false;
  space.read(op, at, sizeof(T), junk);
  if (junk)
    refuse(name, " reads junk from ", space.name, " at byte ", at, " (padding that a copy added, or bytes behind an allocation)");
  T x;
  memcpy((void*)&x, space.bytes + at, sizeof(T));
  return x;
}
template <class T> void set_scalar(Space& space, size_t at, T x, const char* name) {
  Operation op(PIPE_S, name);
  space.write(op, at, sizeof(T), false);
  memcpy(space.bytes + at, (const void*)&x, sizeof(T));
}

namespace AscendC {
template <class T> class GlobalTensor {
 public:
  using PrimType = T;
  Space* space = nullptr;
  size_t base = 0;                       // bytes from the start of the allocation
  uint64_t length = UINT64_MAX / 16;     // elements
  T* address = nullptr;

  void SetGlobalBuffer(T* buffer, uint64_t size) { SetGlobalBuffer(buffer); length = size; }
  void SetGlobalBuffer(T* buffer) {
    address = buffer, space = nullptr, length = UINT64_MAX / 16;
    for (auto& memory : ::global_memory())
      if (memory->holds((const uint8_t*)buffer)) space = memory.get(), base = (const uint8_t*)buffer - space->bytes;
    if (buffer && !space) refuse("SetGlobalBuffer: the address lies in no argument of the kernel");
    if (base % sizeof(T)) refuse("SetGlobalBuffer: the address is not aligned to ", type_name<T>());
  }
  T* GetPhyAddr() const { return address; }
  T* GetPhyAddr(uint64_t offset) const { return address + offset; }
  uint64_t GetSize() const { return length; }
  T GetValue(uint64_t i) const { return get_scalar<T>(memory("GetValue"), place(i, 1, "GetValue"), "GetValue"); }
  void SetValue(uint64_t i, T x) const { set_scalar<T>(memory("SetValue"), place(i, 1, "SetValue"), x, "SetValue"); }
  Scalar<GlobalTensor, T> operator()(uint64_t i) const { return {*this, i}; }
  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor rest = *this;
    rest.base += offset * sizeof(T), rest.address += offset;
    rest.length = offset > length ? 0 : length - offset;
    return rest;
  }
  template <class U> GlobalTensor<U> ReinterpretCast() const {
    GlobalTensor<U> other;
    other.space = space, other.base = base, other.length = length * sizeof(T) / sizeof(U), other.address = (U*)address;
    return other;
  }
  void SetL2CacheHint(int) const {}
  template <class... Shape> void SetShapeInfo(const Shape&...) {}

  Space& memory(const char* name) const {
    if (!space) refuse(name, ": a GlobalTensor without SetGlobalBuffer");
    return *space;
  }
  // Byte offset of `n` elements from `i`. `over`: elements behind the declared length that may be read (slack).
  size_t place(uint64_t i, uint64_t n, const char* name, uint64_t over = 0) const {
    if (i + n > length + over)
      refuse(name, ": elements ", i, " to ", i + n, " of a GlobalTensor of ", length, " (out of bounds) in ", memory(name).name);
    return base + i * sizeof(T);
  }
};

template <class T> class LocalTensor {
 public:
  using PrimType = T;
  Piece* piece = nullptr;
  size_t from = 0, length = 0;  // bytes in the piece; elements
  uint32_t life = 0;
  TPosition position = TPosition::VECCALC;

  T GetValue(uint32_t i) const {
    return get_scalar<T>(memory("GetValue"), place((size_t)i * sizeof(T), sizeof(T), "GetValue"), "GetValue");
  }
  void SetValue(uint32_t i, T x) const {
    set_scalar<T>(memory("SetValue"), place((size_t)i * sizeof(T), sizeof(T), "SetValue"), x, "SetValue");
  }
  Scalar<LocalTensor, T> operator()(uint32_t i) const { return {*this, i}; }
  LocalTensor operator[](uint32_t offset) const {
    LocalTensor rest = *this;
    if (offset > length) refuse("LocalTensor: offset ", offset, " of ", length, " elements (out of bounds)");
    rest.from += (size_t)offset * sizeof(T), rest.length -= offset;
    return rest;
  }
  template <class U> LocalTensor<U> ReinterpretCast() const {
    LocalTensor<U> other;
    other.piece = piece, other.from = from, other.length = length * sizeof(T) / sizeof(U), other.life = life,
    other.position = position;
    return other;
  }
  uint32_t GetSize() const { return (uint32_t)length; }
  uint32_t GetLength() const { return (uint32_t)(length * sizeof(T)); }
  void SetSize(uint32_t n) {
    if (piece && from + n * sizeof(T) > piece->bytes) refuse("SetSize: ", n, " elements do not fit the buffer");
    length = n;
  }
  TPosition GetPosition() const { return position; }
  uint64_t GetPhyAddr(uint32_t offset = 0) const { return piece ? piece->at + from + (size_t)offset * sizeof(T) : 0; }
  template <class... Shape> void SetShapeInfo(const Shape&...) {}

  Space& memory(const char* name) const {
    if (!piece) refuse(name, ": a LocalTensor that no buffer gave");
    if (life != piece->life) refuse(name, ": a LocalTensor after its FreeTensor");
    return *piece->space;
  }
  // Byte offset in the memory of `n` bytes from byte `i`, inside this tensor.
  size_t place(size_t i, size_t n, const char* name) const {
    if (i + n > length * sizeof(T))
      refuse(name, ": bytes ", i, " to ", i + n, " of a LocalTensor of ", length * sizeof(T), " (out of bounds) in ",
             memory(name).name);
    return piece->at + from + i;
  }
  // Operands start at a multiple of the memory's unit.
  const LocalTensor& aligned(const char* name, size_t unit = 32) const {
    memory(name);
    if ((piece->at + from) % unit)
      refuse(name, ": a LocalTensor at byte ", piece->at + from, " of ", piece->space->name, " is not aligned to ", unit, " bytes");
    return *this;
  }
  T load(const Operation& op, size_t at, bool& junk) const {
    Space& space = memory(op.name);
    size_t p = place(at, sizeof(T), op.name);
    space.read(op, p, sizeof(T), junk);
    T x;
    memcpy((void*)&x, space.bytes + p, sizeof(T));
    return x;
  }
  void store(const Operation& op, size_t at, T x, bool junk) const {
    Space& space = memory(op.name);
    size_t p = place(at, sizeof(T), op.name);
    space.write(op, p, sizeof(T), junk);
    memcpy(space.bytes + p, (const void*)&x, sizeof(T));
  }
};
}  // namespace AscendC
