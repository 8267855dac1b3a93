// A memory: bytes, what is known of each, and who touched them last. Reading what no one wrote is an error.
#pragma once
#include <algorithm>
#include <unordered_map>
#include <vector>
#include "types.h"

// An instruction: its pipe among all pipes of all cores, and its number there. Number 0: none.
struct Epoch {
  uint32_t line = 0, index = 0;
  explicit operator bool() const { return index != 0; }
};
// JUNK is defined by no document (padding that a copy adds, bytes behind an allocation). It may be moved and computed
// with, and what comes of it is junk; a scalar or an output that holds it is an error.
enum Byte : uint8_t { UNWRITTEN, WRITTEN, JUNK };

struct Operation;
struct Space {
  std::string name;
  uint8_t* bytes = nullptr;
  size_t size = 0, slack = 0;  // slack: bytes behind the end that an allocation rounds up to; readable junk
  size_t grain = 1;            // bytes that one record of accesses stands for
  bool constant = false;       // an input: nobody writes there
  int64_t used = 0;            // bytes that a TPipe gave away
  std::vector<uint8_t> state, own;
  std::vector<Epoch> writes, reads;
  std::unordered_map<size_t, std::vector<Epoch>> more_reads, atomics;  // atomic writes need no order among themselves

  void allocate(const std::string& called, size_t n, size_t record) {
    own.assign(n, 0xCD);
    adopt(called, own.data(), n, 0, record, UNWRITTEN);
  }
  void adopt(const std::string& called, uint8_t* data, size_t n, size_t behind, size_t record, Byte content) {
    name = called, bytes = data, size = n, slack = behind, grain = record;
    state.assign(n + behind, content);
    std::fill(state.begin() + n, state.end(), JUNK);
    writes.assign((n + behind + grain - 1) / grain, {});
    reads = writes;
  }
  bool holds(const uint8_t* p) const { return p >= bytes && p <= bytes + size + slack; }
  void forget(size_t at, size_t n) { std::fill(state.begin() + at, state.begin() + at + n, UNWRITTEN); }

  // The past access must have ended before `op` starts.
  void order(const Operation& op, Epoch past, const char* did, const char* does, size_t at);
  template <class Op> void read(const Op& op, size_t at, size_t n, bool& junk) {
    if (at + n > size + slack) refuse(op.name, " reads ", name, " at bytes ", at, " to ", at + n, " of ", size, " (out of bounds)");
    for (size_t i = at; i < at + n; i++) {
      if (state[i] == UNWRITTEN) refuse(op.name, " reads ", name, " at byte ", i, ", which no one wrote");
      junk |= state[i] == JUNK;
    }
    order_read(op, at, n);
  }
  // Without a look at the content.
  template <class Op> void order_read(const Op& op, size_t at, size_t n) {
    for (size_t c = at / grain; c <= (at + n - 1) / grain; c++) {
      Epoch& last = reads[c];
      if (last.line == op.epoch.line && last.index == op.epoch.index) continue;
      if (!op.chained && writes[c].line == op.epoch.line && writes[c].index == op.epoch.index)
        refuse(op.name, " reads ", name, " at byte ", c * grain, ", which an earlier repeat of the same instruction wrote (overlap)");
      order(op, writes[c], "wrote", "reads", c * grain);
      for (Epoch past : listed(atomics, c)) order(op, past, "wrote", "reads", c * grain);
      if (last && last.line != op.epoch.line && op.pipe.known[last.line] < last.index) more_reads[c].push_back(last);
      last = op.epoch;
    }
  }
  template <class Op> void write(const Op& op, size_t at, size_t n, bool junk, bool atomic = false) {
    if (at + n > size) refuse(op.name, " writes ", name, " at bytes ", at, " to ", at + n, " of ", size, " (out of bounds)");
    if (constant) refuse(op.name, " writes ", name, ", an input");
    for (size_t c = at / grain; c <= (at + n - 1) / grain; c++) {
      if (writes[c].line == op.epoch.line && writes[c].index == op.epoch.index) continue;
      order(op, writes[c], "wrote", "writes", c * grain);
      order(op, reads[c], "read", "writes", c * grain);
      for (Epoch past : listed(more_reads, c)) order(op, past, "read", "writes", c * grain);
      if (atomic) {
        auto& all = atomics[c];
        if (all.empty() || all.back().line != op.epoch.line || all.back().index != op.epoch.index) all.push_back(op.epoch);
        continue;
      }
      for (Epoch past : listed(atomics, c)) order(op, past, "wrote", "writes", c * grain);
      writes[c] = op.epoch;
      reads[c] = {};
      if (!more_reads.empty()) more_reads.erase(c);
      if (!atomics.empty()) atomics.erase(c);
    }
    std::fill(state.begin() + at, state.begin() + at + n, junk ? JUNK : WRITTEN);
  }

 private:
  static const std::vector<Epoch>& listed(const std::unordered_map<size_t, std::vector<Epoch>>& map, size_t c) {
    static const std::vector<Epoch> none;
    if (map.empty()) return none;
    auto found = map.find(c);
    return found == map.end() ? none : found->second;
  }
};
