// torch's tensors and numbers as aclnn takes them, and the two steps of a call.
#pragma once
#include <torch/extension.h>

#include <vector>

#include "aclnn/acl_meta.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

inline aclDataType type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return ACL_FLOAT;
    case at::kHalf: return ACL_FLOAT16;
    case at::kBFloat16: return ACL_BF16;
    case at::kInt: return ACL_INT32;
    case at::kLong: return ACL_INT64;
    case at::kBool: return ACL_BOOL;
    default: TORCH_CHECK(false, "gr: no kernel takes ", tensor.scalar_type());
  }
}

// A contiguous tensor for the time of a call.
class Operand {
 public:
  explicit Operand(const at::Tensor& tensor) : held(tensor.contiguous()) {
    made = aclCreateTensor(held.sizes().data(), held.dim(), type_of(held), held.strides().data(), 0, ACL_FORMAT_ND,
                           held.sizes().data(), held.dim(), held.data_ptr());
  }
  Operand(const Operand&) = delete;
  ~Operand() { aclDestroyTensor(made); }
  operator aclTensor*() const { return made; }

 private:
  at::Tensor held;
  aclTensor* made;
};

// A number that the host reads.
class Number {
 public:
  explicit Number(int64_t number) : value(number), made(aclCreateIntArray(&value, 1)) {}
  Number(const Number&) = delete;
  ~Number() { aclDestroyIntArray(made); }
  operator aclIntArray*() const { return made; }

 private:
  int64_t value;
  aclIntArray* made;
};

// The sizes of a result: numbers, and sizes of an operand from one on.
inline std::vector<int64_t> joined(std::vector<int64_t> sizes, at::IntArrayRef more = {}) {
  sizes.insert(sizes.end(), more.begin(), more.end());
  return sizes;
}

// Plans with `plan`, which says how much memory the call needs, and runs it on the current stream.
template <class Plan, class Start> void launch(const char* name, const at::Tensor& on, Plan plan, Start start) {
  uint64_t bytes = 0;
  aclOpExecutor* executor = nullptr;
  auto status = plan(&bytes, &executor);
  TORCH_CHECK(status == 0, name, ": planning the call failed with status ", status);
  at::Tensor memory = at::empty({static_cast<int64_t>(bytes)}, on.options().dtype(at::kByte));
  status = start(memory.data_ptr(), bytes, executor, c10_npu::getCurrentNPUStream().stream());
  TORCH_CHECK(status == 0, name, ": starting the call failed with status ", status);
}
