// What a launch runs on: capacities and counts of the machine description, given at run time, never constants.
#pragma once
#include "types.h"

struct Machine {
  int64_t ub = 0, l1 = 0, l0a = 0, l0b = 0, l0c = 0, bias = 0;  // bytes
  int64_t cube_cores = 0, vector_cores = 0;
  bool auto_sync = true;  // what the compiler of an operator project orders by itself is ordered
  int64_t blocks = 1, tiling_key = 0;
  std::string kind = "vector";  // "vector", "cube", or "mix": one cube core and two vector cores a block
};
