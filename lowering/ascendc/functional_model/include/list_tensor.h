// The tensors that a dynamic input or output lists, of which a kernel takes the addresses.
#pragma once
#include "tensor.h"

namespace AscendC {
class ListTensorDesc {
 public:
  ListTensorDesc() = default;
  ListTensorDesc(void* list) { Init(list); }
  void Init(void* list) {
    const uint64_t* words = (const uint64_t*)list;
    if (words[0] != 24 || words[2] != 0xffffffff) refuse("ListTensorDesc: the parameter is no list of tensors");
    count = (uint32_t)(words[1] >> 32), first = words + 3;
  }
  uint32_t GetSize() const { return count; }
  template <class T> T* GetDataPtr(uint32_t index) const {
    if (index >= count) refuse("ListTensorDesc: GetDataPtr of tensor ", index, " of ", count);
    return (T*)first[index];
  }

 private:
  uint32_t count = 0;
  const uint64_t* first = nullptr;
};
}  // namespace AscendC
