// The entry of gr::sampled_logits.
#pragma once
#include "sampled_logits.h"

extern "C" i64 gr_sampled_logits(SampledArgs* args) {
  SampledArgs& a = *args;
  if (i64 status = check_places(a)) return status;
  Tasks tasks;
  if (!tasks.build(a)) return NO_MEMORY;
  bool done = for_tiles(a, tasks, [&](const auto& rows, const i64* tokens, i64 count, i64 r, i64 n) {
    tile_logits(a, rows, tokens, count, r, n);
  });
  return done ? DONE : NO_MEMORY;
}
