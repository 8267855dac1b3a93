// Order inside a core (SetFlag, WaitFlag, PipeBarrier) and between cores (CrossCoreSetFlag, CrossCoreWaitFlag, SyncAll).
#pragma once
#include "queue.h"

#define ASCEND_IS_AIV (core().core == Core::VECTOR)
#define ASCEND_IS_AIC (core().core == Core::CUBE)

namespace AscendC {
inline int64_t GetBlockIdx() { return core().core == Core::CUBE ? core().block : core().id_in_kind; }
inline int64_t GetBlockNum() { return machine().blocks; }
inline int64_t GetSubBlockIdx() { return core().sub; }
inline int64_t GetSubBlockNum() { return machine().kind == "mix" && core().core == Core::VECTOR ? 2 : 1; }
inline int64_t GetTaskRation() { return GetSubBlockNum(); }
inline int64_t GetTaskRatio() { return GetSubBlockNum(); }
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }

// ------------------------------------------------------------------------------------------- inside a core
inline EventFlag& event_flag(HardEvent event, int32_t id, const char* name) {
  if (id < 0 || id > 7) refuse(name, "<", pipes_of(event).name, ">: event id ", id, " is not in 0 to 7");
  return core().events[(int)event][id];
}
inline void set_event(HardEvent event, int32_t id) {
  EventFlag& flag = event_flag(event, id, "SetFlag");
  if (flag.set) refuse("SetFlag<", pipes_of(event).name, ">(", id, ") twice without a WaitFlag between");
  flag.set = true;
  flag.clock = core().pipes[pipes_of(event).from].ended();
  core().at_end.push_back([event, id] {
    if (core().events[(int)event][id].set) refuse("SetFlag<", pipes_of(event).name, ">(", id, ") without a WaitFlag");
  });
}
inline void wait_event(HardEvent event, int32_t id) {
  EventFlag& flag = event_flag(event, id, "WaitFlag");
  if (!flag.set) refuse("WaitFlag<", pipes_of(event).name, ">(", id, ") without a SetFlag before it");
  flag.set = false;
  join(core().pipes[pipes_of(event).to].known, flag.clock);
}
template <HardEvent event> void SetFlag(int32_t id) { set_event(event, id); }
template <HardEvent event> void WaitFlag(int32_t id) { wait_event(event, id); }
template <pipe_t from, pipe_t to> struct TQueSync {
  static constexpr HardEvent event() {
    for (int e = 0; e < (int)HardEvent::MAX; e++)
      if (EVENT_PIPES[e].from == from && EVENT_PIPES[e].to == to) return (HardEvent)e;
    return HardEvent::MAX;
  }
  static_assert(event() != HardEvent::MAX, "no flag leads from this pipe to that");
  void SetFlag(TEventID id) { set_event(event(), id); }
  void WaitFlag(TEventID id) { wait_event(event(), id); }
};

inline Clock all_ended() {
  Agent& agent = core();
  Clock clock = agent.pipes[0].known;
  for (Pipe& pipe : agent.pipes) join(clock, pipe.ended());
  return clock;
}
inline void all_know(const Clock& clock) {
  for (Pipe& pipe : core().pipes) join(pipe.known, clock);
}
inline void barrier(pipe_t pipe) {
  if (pipe == PIPE_S) refuse("PipeBarrier<PIPE_S>: the scalar unit has no barrier");
  if (pipe == PIPE_ALL) return all_know(all_ended());
  Pipe& one = core().pipes[pipe];
  one.known[one.line] = one.issued;
}
template <pipe_t pipe> void PipeBarrier() { barrier(pipe); }

// ------------------------------------------------------------------------------------------ between cores
// Cores that wait for each other must all run at once.
inline void need_all_cores(const char* name) {
  const Machine& m = machine();
  int64_t there = m.kind == "vector" ? m.vector_cores : m.cube_cores;
  if (m.blocks > there)
    refuse(name, ": ", m.blocks, " blocks on ", there, " cores: the blocks that wait keep the others from starting");
}
inline bool takes_part(const Agent& other, int mode) {
  const Agent& me = core();
  if (mode == 0) return other.core == me.core;
  return other.block == me.block && (mode == 1 ? other.core == Core::VECTOR : other.core == me.core);
}
inline bool is_told(const Agent& other, int mode) {
  const Agent& me = core();
  return mode == 2 ? other.block == me.block && other.core != me.core : takes_part(other, mode);
}
inline void raise_flag(int mode, pipe_t pipe, uint16_t id) {
  Agent& agent = core();
  Crew& crew = *agent.crew;
  if (id > 15) refuse("CrossCoreSetFlag: flag ", id, " is not in 0 to 15");
  if (pipe == PIPE_S || pipe == PIPE_ALL) refuse("CrossCoreSetFlag: pipe ", pipe_name(pipe), " is not supported");
  if (mode < 0 || mode > 2) refuse("CrossCoreSetFlag: mode ", mode, " is not supported on Atlas A2 and A3");
  if (mode != 0 && machine().kind != "mix")
    refuse("CrossCoreSetFlag: mode ", mode, " needs a kernel with a cube core and vector cores");
  if (mode == 0) need_all_cores("CrossCoreSetFlag");
  for (auto& [key, waiting] : agent.raised)
    if (key.first == id && key.second != mode && !waiting.empty())
      refuse("CrossCoreSetFlag: flag ", id, " is in use by mode ", key.second);
  agent.raised[{id, mode}].push_back(agent.pipes[pipe].ended());
  Clock all(agent.pipes[0].known.size(), 0);
  for (auto& other : crew.agents)
    if (takes_part(*other, mode) && other->raised[{id, mode}].empty()) return;
  for (auto& other : crew.agents)
    if (takes_part(*other, mode)) {
      auto& queue = other->raised[{id, mode}];
      join(all, queue.front());
      queue.pop_front();
    }
  for (auto& other : crew.agents)
    if (is_told(*other, mode)) {
      other->counters[id].push_back(all);
      if (other->counters[id].size() > 15)
        refuse("CrossCoreSetFlag: the counter of flag ", id, " of ", other->name(), " exceeds 15 (too few CrossCoreWaitFlag)");
    }
}
inline void await_flag(uint16_t id) {
  Agent& agent = core();
  if (id > 15) refuse("CrossCoreWaitFlag: flag ", id, " is not in 0 to 15");
  auto& counter = agent.counters[id];
  wait_until("CrossCoreWaitFlag(" + std::to_string(id) + ")", [&counter] { return !counter.empty(); });
  all_know(counter.front());
  counter.pop_front();
}
template <uint8_t mode, pipe_t pipe> void CrossCoreSetFlag(uint16_t id) { raise_flag(mode, pipe, id); }
template <uint8_t mode = 0, pipe_t pipe = PIPE_S> void CrossCoreWaitFlag(uint16_t id) { await_flag(id); }

// All cores that take part, pipes and all.
inline void meet(const char* name, bool vectors_only) {
  Agent& agent = core();
  Crew& crew = *agent.crew;
  auto counts = [vectors_only](const Agent& a) { return !vectors_only || a.core == Core::VECTOR; };
  need_all_cores(name);
  if (!counts(agent)) refuse(name, "<true> on a cube core");
  if (crew.barrier_clock.empty()) crew.barrier_clock.assign(agent.pipes[0].known.size(), 0);
  join(crew.barrier_clock, all_ended());
  int needed = 0, round = crew.barrier_round;
  for (auto& other : crew.agents) needed += counts(*other);
  if (++crew.barrier_arrived == needed) {
    crew.barrier_result = crew.barrier_clock;
    crew.barrier_arrived = 0, crew.barrier_round++;
  } else {
    wait_until(name, [&crew, round] { return crew.barrier_round != round; });
  }
  all_know(crew.barrier_result);
}
template <bool isAIVOnly = true> void SyncAll() {
  if (isAIVOnly && machine().kind == "mix") refuse("SyncAll<true> in a kernel with cube cores does not wait for them");
  meet("SyncAll", isAIVOnly);
}
template <bool isAIVOnly = true>
void SyncAll(const GlobalTensor<int32_t>& workspace, const LocalTensor<int32_t>& local, int32_t cores = 0) {
  int64_t all = machine().blocks * GetSubBlockNum();
  if (cores && cores != all) refuse("SyncAll: only a synchronisation of all cores is modelled");
  workspace.place(0, all * 8, "SyncAll");
  local.place(0, all * 32, "SyncAll");
  meet("SyncAll", true);
}

// The scalar unit's cache is not modelled: scalars reach global memory at once.
template <class T, CacheLine entire, DcciDst target = DcciDst::CACHELINE_OUT>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor) {
  tensor.memory("DataCacheCleanAndInvalid");
}
template <class T> T* GetDataPtr(const GlobalTensor<T>& tensor) { return tensor.address; }

inline void SetMaskCount() { core().mask.counter = true; }
inline void SetMaskNorm() { core().mask.counter = false; }
inline void ResetMask() { core().mask.low = core().mask.high = ~0ull; }
template <class T, MaskMode mode = MaskMode::NORMAL> void SetVectorMask(uint64_t high, uint64_t low) {
  core().mask.high = high, core().mask.low = low;
}
template <class T, MaskMode mode = MaskMode::NORMAL> void SetVectorMask(int32_t n) {
  MaskRegister& mask = core().mask;
  if (mode == MaskMode::COUNTER || mask.counter) { mask.low = n, mask.high = 0; return; }
  mask.low = n >= 64 ? ~0ull : (1ull << n) - 1;
  mask.high = n >= 128 ? ~0ull : n > 64 ? (1ull << (n - 64)) - 1 : 0;
}

template <class T> void SetAtomicAdd() {
  types<T, int8_t, int16_t, half, bfloat16_t, int32_t, float>("SetAtomicAdd");
  core().atomic = Atomic::ADD;
}
template <class T> void SetAtomicMax() {
  types<T, int8_t, int16_t, half, bfloat16_t, int32_t, float>("SetAtomicMax");
  core().atomic = Atomic::MAX;
}
template <class T> void SetAtomicMin() {
  types<T, int8_t, int16_t, half, bfloat16_t, int32_t, float>("SetAtomicMin");
  core().atomic = Atomic::MIN;
}
inline void SetAtomicNone() { core().atomic = Atomic::NONE; }
inline void DisableDmaAtomic() { SetAtomicNone(); }
}  // namespace AscendC
inline void pipe_barrier(pipe_t pipe) { AscendC::barrier(pipe); }
