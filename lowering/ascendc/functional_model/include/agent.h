// A core as an agent: its pipes with vector clocks, its buffers, its flags. Agents take turns under one baton.
//
// A pipe starts its instructions in order, and an instruction may start while an earlier one still runs. `known` of a
// pipe says, for every pipe of every core, up to which instruction all have ended before the pipe's next one starts:
// only flags, queues and barriers move it. Two accesses are ordered if the later one's pipe knows the earlier one; the
// turn in which the model happens to run them orders nothing.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#include "machine.h"
#include "memory.h"

using Clock = std::vector<uint32_t>;
inline void join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); i++) into[i] = std::max(into[i], from[i]);
}

struct Pipe {
  int line = 0;         // of all pipes of all cores
  uint32_t issued = 0;  // instructions so far
  Clock known;
  Clock ended() const { Clock all = known; all[line] = issued; return all; }
};

// Mask registers of the vector unit.
struct MaskRegister { bool counter = false; uint64_t low = ~0ull, high = ~0ull; };
enum class Atomic { NONE, ADD, MAX, MIN };

struct EventFlag { bool set = false; Clock clock; };

enum class Core { CUBE, VECTOR };
struct Crew;
struct Agent {
  Crew* crew = nullptr;
  int id = 0, block = 0, sub = 0;
  Core core = Core::VECTOR;
  Pipe pipes[PIPES];
  Space ub, l1, l0a, l0b, l0c, bias;
  MaskRegister mask;
  Atomic atomic = Atomic::NONE;
  EventFlag events[(int)AscendC::HardEvent::MAX][8];
  uint8_t taken[(int)AscendC::HardEvent::MAX] = {};  // event ids that AllocEventID gave
  std::deque<Clock> counters[16];                    // of cross-core flags
  std::map<std::pair<int, int>, std::deque<Clock>> raised;  // (flag, mode): sets that wait for the others' sets
  std::vector<std::function<void()>> at_end;         // what must hold when the kernel returns
  void* pipe_owner = nullptr;                        // the TPipe
  int buffers = 0, queue_buffers[16] = {};
  std::string waits;                                 // for what, while it waits
  bool done = false;
  std::string name() const {
    std::ostringstream text;
    if (core == Core::CUBE) text << "cube core of block " << block;
    else text << "vector core " << id_in_kind << " (block " << block << ", sub-block " << sub << ")";
    return text.str();
  }
  int id_in_kind = 0;
};

// All cores of a launch. One thread each; whoever holds the baton runs until it waits or ends.
struct Crew {
  Machine machine;
  std::vector<std::unique_ptr<Agent>> agents;
  std::mutex lock;
  std::condition_variable turn;
  int holder = 0;
  bool abandoned = false;
  std::string failure;
  int barrier_arrived = 0, barrier_round = 0;
  Clock barrier_clock, barrier_result;

  // Hand the baton to the next agent that can go on; `ready` of an agent is its own condition.
  std::vector<std::function<bool()>> ready;
  bool pass_on(int from) {
    for (size_t step = 1; step <= agents.size(); step++) {
      int next = (from + step) % agents.size();
      if (!agents[next]->done && (!ready[next] || ready[next]())) { holder = next; turn.notify_all(); return true; }
    }
    return false;
  }
  std::string deadlock() const {
    std::ostringstream text;
    text << "deadlock:";
    for (auto& agent : agents)
      if (!agent->done) text << " " << agent->name() << " waits for " << agent->waits << ";";
    for (auto& agent : agents)
      if (agent->done) { text << " the others have ended"; break; }
    return text.str();
  }
  void abandon(const std::string& why) {
    if (!abandoned) { abandoned = true; failure = why; }
    turn.notify_all();
  }
};
struct Abandoned {};

inline thread_local Agent* self = nullptr;
inline Agent& core() { return *self; }
inline Machine& machine() { return self->crew->machine; }

// The current core waits until `ready`. Everybody waits: deadlock.
inline void wait_until(const std::string& what, std::function<bool()> ready) {
  if (ready()) return;
  Crew& crew = *self->crew;
  std::unique_lock<std::mutex> held(crew.lock);
  self->waits = what;
  crew.ready[self->id] = ready;
  if (!crew.pass_on(self->id)) crew.abandon(crew.deadlock());
  crew.turn.wait(held, [&] { return crew.abandoned || crew.holder == self->id; });
  if (crew.abandoned) throw Abandoned{};
  crew.ready[self->id] = nullptr;
  self->waits.clear();
}

// One instruction on one pipe of the current core.
struct Operation {
  Agent& agent;
  Pipe& pipe;
  int kind;
  const char* name;
  Epoch epoch;
  bool chained = false;  // a later repeat may read what an earlier one wrote
  bool paced = false;    // the hardware orders it with earlier instructions of its pipe
  Operation(pipe_t on, const char* what) : agent(core()), pipe(agent.pipes[on]), kind(on), name(what) {
    pipe.issued++;
    // The scalar unit works one after the other and issues all instructions: what it has waited for is over for every
    // later one. What it did itself is not: a scalar that it stored may still be on its way.
    Pipe& scalar = agent.pipes[PIPE_S];
    if (on == PIPE_S) pipe.known[pipe.line] = pipe.issued;
    else {
      uint32_t own = pipe.known[scalar.line];
      join(pipe.known, scalar.known);
      pipe.known[scalar.line] = own;
    }
    epoch = {(uint32_t)pipe.line, pipe.issued};
  }
};

// The compiler of an operator project orders V with V and S with V, MTE2 and MTE3 on a vector core by itself
// (--cce-auto-sync=on, its default); a cube core has no such help.
inline bool synchronised_by_compiler(const Operation& op, int other) {
  if (!machine().auto_sync || op.agent.core != Core::VECTOR) return false;
  if (other == PIPE_S || op.kind == PIPE_S) return true;
  return other == PIPE_V && op.kind == PIPE_V;
}

inline void Space::order(const Operation& op, Epoch past, const char* did, const char* does, size_t at) {
  if (!past || (past.line == op.epoch.line && past.index == op.epoch.index)) return;
  Clock& known = op.pipe.known;
  if (known[past.line] >= past.index) return;
  int other = past.line % PIPES;
  Agent& owner = *op.agent.crew->agents[past.line / PIPES];
  if (&owner == &op.agent && (synchronised_by_compiler(op, other) || (op.paced && other == op.kind))) {
    known[past.line] = past.index;
    return;
  }
  if (&owner == &op.agent)
    refuse(op.name, " on pipe ", pipe_name(op.kind), " ", does, " ", name, " at byte ", at, ", which pipe ", pipe_name(other), " ",
           did, " before; no flag, queue or barrier orders the two (hazard)");
  refuse(op.name, " on pipe ", pipe_name(op.kind), " ", does, " ", name, " at byte ", at, ", which ", owner.name(), " ", did,
         " on pipe ", pipe_name(other), "; no flag between the cores orders the two (hazard)");
}
