// torch's tensors and numbers as aclnn takes them, and the two steps of a call.
#pragma once
#include <torch/extension.h>

#include <memory>
#include <string>
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

// An operand that need not be there.
class Optional {
 public:
  explicit Optional(const std::optional<at::Tensor>& tensor) {
    if (tensor.has_value()) held = std::make_unique<Operand>(*tensor);
  }
  operator aclTensor*() const { return held ? static_cast<aclTensor*>(*held) : nullptr; }

 private:
  std::unique_ptr<Operand> held;
};

// The tensors of a dynamic input or output.
class Operands {
 public:
  explicit Operands(const std::vector<at::Tensor>& tensors) : held(tensors) {
    std::vector<aclTensor*> each;
    for (at::Tensor& tensor : held) {
      tensor = tensor.contiguous();
      each.push_back(aclCreateTensor(tensor.sizes().data(), tensor.dim(), type_of(tensor), tensor.strides().data(), 0,
                                     ACL_FORMAT_ND, tensor.sizes().data(), tensor.dim(), tensor.data_ptr()));
    }
    made = aclCreateTensorList(each.data(), each.size());
  }
  Operands(const Operands&) = delete;
  ~Operands() { aclDestroyTensorList(made); }  // and its tensors
  operator aclTensorList*() const { return made; }

 private:
  std::vector<at::Tensor> held;
  aclTensorList* made;
};

// Yes or no, for each.
class Flags {
 public:
  explicit Flags(const c10::List<bool>& flags) {
    std::unique_ptr<bool[]> each(new bool[flags.size()]);
    for (size_t i = 0; i < flags.size(); i++) each[i] = flags[i];
    made = aclCreateBoolArray(each.get(), flags.size());
  }
  Flags(const Flags&) = delete;
  ~Flags() { aclDestroyBoolArray(made); }
  operator aclBoolArray*() const { return made; }

 private:
  aclBoolArray* made;
};

inline std::vector<at::Tensor> of_type(at::TensorList tensors, at::ScalarType type) {
  std::vector<at::Tensor> found;
  for (const at::Tensor& tensor : tensors)
    if (tensor.scalar_type() == type) found.push_back(tensor);
  return found;
}

// "float32,int64": in which order leaves of several types stand.
inline std::string types_of(at::TensorList tensors) {
  std::string found;
  for (const at::Tensor& tensor : tensors) {
    const at::ScalarType type = tensor.scalar_type();
    if (!found.empty()) found += ",";
    found += type == at::kFloat      ? "float32"
             : type == at::kHalf     ? "float16"
             : type == at::kBFloat16 ? "bfloat16"
             : type == at::kInt      ? "int32"
             : type == at::kLong     ? "int64"
                                     : "bool";
  }
  return found;
}

// The type of a score program's result.
inline at::ScalarType type_in(const std::string& program) {
  if (program.find("\nout_dtype f16\n") != std::string::npos) return at::kHalf;
  return program.find("\nout_dtype bf16\n") != std::string::npos ? at::kBFloat16 : at::kFloat;
}

// Where a gradient goes; without elements where nobody wants it.
inline at::Tensor gradient(const std::optional<at::Tensor>& of, bool wanted, const at::Tensor& v) {
  return wanted && of.has_value() ? at::empty(of->sizes(), of->options()) : at::empty({0}, v.options());
}

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
