// TPipe, TQue, TQueBind, TBuf: buffers with real capacities, and the discipline Alloc, EnQue, DeQue, Free.
#pragma once
#include "tensor.h"

namespace AscendC {
inline Space& memory_of(TPosition position) {
  Agent& agent = core();
  switch (position) {
    case TPosition::A1: case TPosition::B1: case TPosition::C1: case TPosition::TSCM: return agent.l1;
    case TPosition::A2: return agent.l0a;
    case TPosition::B2: return agent.l0b;
    case TPosition::CO1: return agent.l0c;
    case TPosition::C2: return agent.bias;
    case TPosition::VECIN: case TPosition::VECOUT: case TPosition::VECCALC: return agent.ub;
    default: refuse("a buffer cannot lie at this TPosition");
  }
}

// The pipes that a queue's own flags order: EnQue tells `to` that `from` has ended; FreeTensor tells `from` of `to`.
struct Route { pipe_t from, to; };
inline Route route_of(TPosition source, TPosition target) {
  using P = TPosition;
  if (source == P::VECIN && target == P::VECOUT) return {PIPE_MTE2, PIPE_MTE3};
  switch (source == P::GM ? target : source) {
    case P::VECIN: return {PIPE_MTE2, PIPE_V};
    case P::VECOUT: case P::VECCALC: return {PIPE_V, PIPE_MTE3};
    case P::A2: case P::B2: case P::C2: return {PIPE_MTE1, PIPE_M};
    case P::CO1: return {PIPE_M, PIPE_FIX};
    default: return {PIPE_MTE2, PIPE_MTE1};  // L1
  }
}

class TPipe;
template <TPosition source, TPosition target, int32_t depth, int32_t mask = 0> class TQueBind {
 public:
  static constexpr bool isTQue = true;
  template <class T> LocalTensor<T> AllocTensor() {
    for (auto& piece : pieces) {
      if (piece->where != Piece::FREE) continue;
      join(core().pipes[route().from].known, piece->freed);
      piece->space->forget(piece->at, piece->bytes);
      piece->where = Piece::HELD;
      return handle<T>(*piece);
    }
    refuse("AllocTensor: all ", pieces.size(), " buffers of the queue are in use (a missing FreeTensor, or too few buffers)");
  }
  template <class T> bool EnQue(const LocalTensor<T>& tensor) {
    Piece& piece = mine(tensor, "EnQue");
    if (piece.where != Piece::HELD) refuse("EnQue: this tensor is in the queue already");
    if ((int32_t)queue.size() >= (depth == 0 ? 1 : depth)) refuse("EnQue: the queue of depth ", depth, " is full");
    piece.enqueued = core().pipes[route().from].ended();
    piece.where = Piece::QUEUED;
    queue.push_back(&piece);
    return true;
  }
  template <class T> LocalTensor<T> DeQue() {
    if (queue.empty()) refuse("DeQue: the queue is empty");
    Piece& piece = *queue.front();
    queue.pop_front();
    join(core().pipes[route().to].known, piece.enqueued);
    piece.where = Piece::HELD;
    return handle<T>(piece);
  }
  template <class T> void FreeTensor(LocalTensor<T>& tensor) { free_piece(mine(tensor, "FreeTensor")); }
  template <class T> void FreeTensor(const LocalTensor<T>& tensor) { free_piece(mine(tensor, "FreeTensor")); }
  // Depth 0: the same tensor goes in and comes out.
  template <class T> void AllocTensor(LocalTensor<T>& tensor) { tensor = AllocTensor<T>(); }
  template <class T> void DeQue(LocalTensor<T>& tensor) { tensor = DeQue<T>(); }
  bool HasTensorInQue() const { return !queue.empty(); }
  bool VacantInQue() const { return (int32_t)queue.size() < depth; }
  int32_t GetTensorCountInQue() const { return (int32_t)queue.size(); }
  bool HasIdleBuffer() const {
    for (auto& piece : pieces) if (piece->where == Piece::FREE) return true;
    return false;
  }
  void FreeAllEvent() {}

 private:
  friend class TPipe;
  static constexpr TPosition place = source == TPosition::GM ? target : source;
  static Route route() { return route_of(source, target); }
  std::vector<std::shared_ptr<Piece>> pieces;
  std::deque<Piece*> queue;
  template <class T> LocalTensor<T> handle(Piece& piece) {
    LocalTensor<T> tensor;
    tensor.piece = &piece, tensor.length = piece.bytes / sizeof(T), tensor.life = piece.life, tensor.position = place;
    return tensor;
  }
  template <class T> Piece& mine(const LocalTensor<T>& tensor, const char* name) {
    tensor.memory(name);
    for (auto& piece : pieces) if (piece.get() == tensor.piece) return *piece;
    refuse(name, ": the tensor is of another queue");
  }
  void free_piece(Piece& piece) {
    if (piece.where == Piece::QUEUED) refuse("FreeTensor: the tensor is still in the queue (a missing DeQue)");
    piece.freed = core().pipes[route().to].ended();
    piece.where = Piece::FREE;
    piece.life++;
  }
};
template <TPosition position, int32_t depth, int32_t mask = 0>
class TQue : public TQueBind<position, TPosition::GM, depth, mask> {};

template <TPosition position = TPosition::LCM> class TBuf {
 public:
  template <class T> LocalTensor<T> Get() const { return GetWithOffset<T>(piece_or_refuse().bytes / sizeof(T), 0); }
  template <class T> LocalTensor<T> Get(uint32_t n) const { return GetWithOffset<T>(n, 0); }
  template <class T> LocalTensor<T> AllocTensor() const { return Get<T>(); }
  template <class T> void FreeTensor(LocalTensor<T>&) const {}
  template <class T> LocalTensor<T> GetWithOffset(uint32_t n, uint32_t offset) const {
    Piece& of = piece_or_refuse();
    if (offset % 32) refuse("GetWithOffset: offset ", offset, " is not aligned to 32 bytes");
    if (offset + (size_t)n * sizeof(T) > of.bytes)
      refuse("TBuf: ", n, " elements from byte ", offset, " do not fit its ", of.bytes, " bytes");
    LocalTensor<T> tensor;
    tensor.piece = &of, tensor.from = offset, tensor.length = n, tensor.life = of.life, tensor.position = position;
    return tensor;
  }

 private:
  friend class TPipe;
  std::shared_ptr<Piece> piece;
  Piece& piece_or_refuse() const {
    if (!piece) refuse("TBuf: no InitBuffer");
    return *piece;
  }
};

class TPipe {
 public:
  TPipe() { Init(); }
  ~TPipe() { if (core().pipe_owner == this) core().pipe_owner = nullptr; }
  TPipe(const TPipe&) = delete;
  void Init() { core().pipe_owner = this; Reset(); }
  void Destroy() {}
  void Reset() {
    Agent& agent = core();
    for (Space* space : {&agent.ub, &agent.l1, &agent.l0a, &agent.l0b, &agent.l0c, &agent.bias}) space->used = 0;
    agent.buffers = 0;
    for (int& n : agent.queue_buffers) n = 0;
  }
  template <TPosition source, TPosition target, int32_t depth, int32_t mask>
  bool InitBuffer(TQueBind<source, target, depth, mask>& queue, uint8_t count, uint32_t bytes) {
    constexpr TPosition place = TQueBind<source, target, depth, mask>::place;
    int& events = core().queue_buffers[(int)place];
    if ((events += count) > 8) refuse("InitBuffer: ", events, " queue buffers at one TPosition; there are events for 8");
    for (int i = 0; i < count; i++) {
      queue.pieces.push_back(carve(memory_of(place), bytes));
      std::shared_ptr<Piece> piece = queue.pieces.back();
      core().at_end.push_back([piece] {
        if (piece->where == Piece::HELD) refuse("a tensor of a queue was never freed (a missing FreeTensor)");
        if (piece->where == Piece::QUEUED) refuse("a tensor was left in a queue (a missing DeQue)");
      });
    }
    return true;
  }
  template <TPosition position> bool InitBuffer(TBuf<position>& buffer, uint32_t bytes) {
    buffer.piece = carve(memory_of(position), bytes);
    return true;
  }
  template <HardEvent event> TEventID AllocEventID() {
    uint8_t& taken = core().taken[(int)event];
    for (int id = 0; id < 8; id++)
      if (!(taken >> id & 1)) { taken |= 1 << id; return id; }
    refuse("AllocEventID: all 8 ids of ", pipes_of(event).name, " are in use");
  }
  template <HardEvent event> void ReleaseEventID(TEventID id) { core().taken[(int)event] &= ~(1 << id); }
  TEventID FetchEventID(HardEvent event) {
    for (int id = 0; id < 8; id++)
      if (!(core().taken[(int)event] >> id & 1)) return id;
    refuse("FetchEventID: all 8 ids of ", pipes_of(event).name, " are in use");
  }
  template <HardEvent event> TEventID FetchEventID() { return FetchEventID(event); }

 private:
  static std::shared_ptr<Piece> carve(Space& space, uint32_t bytes) {
    auto piece = std::make_shared<Piece>();
    size_t n = ((size_t)bytes + 31) / 32 * 32;
    if (++core().buffers > 64) refuse("InitBuffer: more than 64 buffers in one kernel");
    if (space.used + (int64_t)n > (int64_t)space.size)
      refuse("InitBuffer: ", space.name, " overflows by ", space.used + n - space.size, " bytes (", space.used, " of ", space.size,
             " given, ", n, " asked)");
    piece->space = &space, piece->at = space.used, piece->bytes = n;
    piece->freed = Clock(core().pipes[0].known.size(), 0);
    space.used += n;
    space.forget(piece->at, n);
    return piece;
  }
};
inline TPipe* GetTPipePtr() { return (TPipe*)core().pipe_owner; }
}  // namespace AscendC
