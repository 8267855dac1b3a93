// The program around a kernel: reads a job, runs every core as a thread, checks what is left, writes the results.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include "kernel_operator.h"

using Entry = std::function<void(const std::vector<GM_ADDR>&)>;
template <class... A, size_t... I> Entry entry_of(void (*kernel)(A...), std::index_sequence<I...>) {
  return [kernel](const std::vector<GM_ADDR>& arguments) {
    if (arguments.size() != sizeof...(A)) refuse("the kernel takes ", sizeof...(A), " arguments, ", arguments.size(), " were given");
    kernel(arguments[I]...);
  };
}
template <class... A> Entry model_entry(void (*kernel)(A...)) { return entry_of(kernel, std::index_sequence_for<A...>()); }

struct Argument { std::string role; size_t bytes = 0, slack = 0; uint8_t* data = nullptr; Space* space = nullptr; };
struct Job {
  std::string folder, kernel;
  Machine machine;
  std::vector<Argument> arguments;
  std::vector<std::pair<bool, size_t>> parameters;  // of the kernel: is it a list, and of how many arguments
  std::deque<std::vector<uint64_t>> lists;

  std::string file(size_t i) const { return folder + "/" + std::to_string(i); }
  explicit Job(const std::string& in) : folder(in) {
    std::ifstream text(folder + "/job");
    Machine& m = machine;
    std::map<std::string, int64_t*> numbers = {{"ub", &m.ub},
                                               {"l1", &m.l1},
                                               {"l0a", &m.l0a},
                                               {"l0b", &m.l0b},
                                               {"l0c", &m.l0c},
                                               {"bias", &m.bias},
                                               {"cube_cores", &m.cube_cores},
                                               {"vector_cores", &m.vector_cores},
                                               {"blocks", &m.blocks},
                                               {"tiling_key", &m.tiling_key}};
    std::string word;
    size_t listed = 0;  // arguments that the last list still lacks
    while (text >> word) {
      if (word == "kernel") text >> kernel;
      else if (word == "kind") text >> m.kind;
      else if (word == "auto_sync") text >> m.auto_sync;
      else if (numbers.count(word)) text >> *numbers[word];
      else if (word == "list") {
        size_t count;
        text >> count;
        parameters.push_back({true, count}), listed = count;
      } else if (word == "argument") {
        Argument a;
        text >> a.role >> a.bytes >> a.slack;
        arguments.push_back(a);
        if (listed) listed--;
        else parameters.push_back({false, 1});
      }
    }
  }
  // One address a parameter. A list is laid out as ListTensorDesc documents it, without shapes.
  std::vector<GM_ADDR> addresses() {
    std::vector<GM_ADDR> found;
    size_t at = 0;
    for (auto& [list, count] : parameters) {
      if (!list) {
        found.push_back(arguments[at++].data);
        continue;
      }
      std::vector<uint64_t>& block = lists.emplace_back(std::vector<uint64_t>{24, (uint64_t)count << 32, 0xffffffff});
      for (size_t i = 0; i < count; i++) block.push_back((uint64_t)arguments[at++].data);
      found.push_back((GM_ADDR)block.data());
    }
    return found;
  }
  void load() {
    for (size_t i = 0; i < arguments.size(); i++) {
      Argument& a = arguments[i];
      a.data = (uint8_t*)aligned_alloc(512, (a.bytes + a.slack + 512) / 512 * 512);
      memset(a.data, 0xCD, a.bytes + a.slack);
      bool given = a.role == "in" || a.role == "inout" || a.role == "tiling";
      if (given) std::ifstream(file(i), std::ios::binary).read((char*)a.data, a.bytes);
      global_memory().push_back(std::make_unique<Space>());
      a.space = global_memory().back().get();
      a.space->adopt("argument " + std::to_string(i), a.data, a.bytes, a.slack, 1, given ? WRITTEN : UNWRITTEN);
      a.space->constant = a.role == "in" || a.role == "tiling";
    }
  }
  void check_outputs() const {
    for (auto& a : arguments) {
      if (a.role != "out" && a.role != "inout") continue;
      for (size_t b = 0; b < a.bytes; b++) {
        if (a.space->state[b] == UNWRITTEN) refuse(a.space->name, ": byte ", b, " of ", a.bytes, " was never written");
        if (a.space->state[b] == JUNK)
          refuse(a.space->name, ": byte ", b, " of ", a.bytes,
                 " holds junk (padding that a copy added, or bytes behind an allocation)");
      }
    }
  }
  void store() const {
    for (size_t i = 0; i < arguments.size(); i++)
      if (arguments[i].role == "out" || arguments[i].role == "inout")
        std::ofstream(file(i), std::ios::binary).write((const char*)arguments[i].data, arguments[i].bytes);
  }
};

inline void hire(Crew& crew) {
  const Machine& m = crew.machine;
  auto add = [&](int block, int sub, Core kind, int number) {
    auto agent = std::make_unique<Agent>();
    agent->crew = &crew, agent->id = (int)crew.agents.size(), agent->block = block, agent->sub = sub, agent->core = kind,
    agent->id_in_kind = number;
    bool cube = kind == Core::CUBE;  // of the other kind's buffers a core has none
    agent->ub.allocate("the unified buffer", cube ? 0 : m.ub, 32);
    agent->l1.allocate("L1", cube ? m.l1 : 0, 32), agent->bias.allocate("the bias table", cube ? m.bias : 0, 32);
    agent->l0a.allocate("L0A", cube ? m.l0a : 0, 32), agent->l0b.allocate("L0B", cube ? m.l0b : 0, 32),
        agent->l0c.allocate("L0C", cube ? m.l0c : 0, 32);
    crew.agents.push_back(std::move(agent));
  };
  for (int block = 0; block < m.blocks; block++) {
    if (m.kind != "vector") add(block, 0, Core::CUBE, block);
    if (m.kind == "mix") add(block, 0, Core::VECTOR, 2 * block), add(block, 1, Core::VECTOR, 2 * block + 1);
    if (m.kind == "vector") add(block, 0, Core::VECTOR, block);
  }
  size_t lines = crew.agents.size() * PIPES;
  for (auto& agent : crew.agents)
    for (int p = 0; p < PIPES; p++) {
      agent->pipes[p].line = agent->id * PIPES + p;
      agent->pipes[p].known.assign(lines, 0);
    }
  crew.ready.resize(crew.agents.size());
}

inline void work(Crew& crew, Agent& agent, const Entry& kernel, const std::vector<GM_ADDR>& arguments) {
  self = &agent;
  {
    std::unique_lock<std::mutex> held(crew.lock);
    crew.turn.wait(held, [&] { return crew.abandoned || crew.holder == agent.id; });
    if (crew.abandoned) return;
  }
  std::string failure;
  try {
    kernel(arguments);
    for (auto& check : agent.at_end) check();
  } catch (const Abandoned&) {
    return;
  } catch (const std::exception& error) {
    failure = agent.name() + ": " + error.what();
  }
  std::unique_lock<std::mutex> held(crew.lock);
  agent.done = true;
  if (!failure.empty()) return crew.abandon(failure);
  bool all = true;
  for (auto& other : crew.agents) all &= other->done;
  if (!all && !crew.pass_on(agent.id)) crew.abandon(crew.deadlock());
}

inline void check_flags(const Crew& crew) {
  for (auto& agent : crew.agents) {
    for (int id = 0; id < 16; id++)
      if (!agent->counters[id].empty()) refuse(agent->name(), ": CrossCoreSetFlag of flag ", id, " without a CrossCoreWaitFlag");
    for (auto& [key, waiting] : agent->raised)
      if (!waiting.empty())
        refuse(agent->name(), ": CrossCoreSetFlag of flag ", key.first, ", mode ", key.second, ", that the others never joined");
  }
}

inline int model_run(int count, char** words, const std::map<std::string, Entry>& kernels) {
  if (count != 2) return 2;
  Job job(words[1]);
  std::ofstream verdict(job.folder + "/verdict");
  try {
    auto found = kernels.find(job.kernel);
    if (found == kernels.end()) refuse("no kernel ", job.kernel);
    job.load();
    Crew crew;
    crew.machine = job.machine;
    hire(crew);
    std::vector<GM_ADDR> arguments = job.addresses();
    std::vector<std::thread> threads;
    for (auto& agent : crew.agents)
      threads.emplace_back([&crew, &agent, &found, &arguments] { work(crew, *agent, found->second, arguments); });
    for (auto& thread : threads) thread.join();
    if (!crew.failure.empty()) refuse(crew.failure);
    check_flags(crew);
    job.check_outputs();
    job.store();
    verdict << "passed";
  } catch (const std::exception& error) {
    verdict << error.what();
  }
  verdict.close();
  std::fflush(nullptr);
  std::_Exit(0);
}
