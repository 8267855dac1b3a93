// What an AscendC kernel includes: the functional model of the API on a CPU. See docs/ascend.md.
#pragma once
#include "cast.h"
#include "cube.h"
#include "list_tensor.h"
#include "rearrange.h"
#include "reduce.h"
#include "select.h"

template <class T> T read_tiling(GM_ADDR from) {
  T tiling;
  memcpy((void*)&tiling, from, sizeof(T));
  return tiling;
}
#define GET_TILING_DATA(name, pointer) TilingData name = read_tiling<TilingData>(pointer)
#define GET_TILING_DATA_WITH_STRUCT(type, name, pointer) type name = read_tiling<type>(pointer)
#define TILING_KEY_IS(key) (machine().tiling_key == (key))
#define KERNEL_TASK_TYPE_DEFAULT(kind)
#define KERNEL_TASK_TYPE(key, kind)
