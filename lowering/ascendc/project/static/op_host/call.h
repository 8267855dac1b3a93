// What the formulas of tilings and shapes ask of a call, answered by GE's context.
#pragma once
#include <cstdio>
#include <cstring>

#include "graph/utils/type_utils.h"
#include "register/op_impl_registry.h"

template <class Context> struct Call {
  Context* context;

  static const gert::Shape& plain(const gert::Shape* shape) { return *shape; }
  static const gert::Shape& plain(const gert::StorageShape* shape) { return shape->GetStorageShape(); }
  // Ports are counted as the definition has them; `element`: of a dynamic input.
  const gert::Shape& shape(int port, int64_t element = 0) const {
    return plain(context->GetDynamicInputShape(port, element));
  }
  bool has(int port) const { return context->GetIrInputInstanceInfo(port)->GetInstanceNum() > 0; }
  ge::DataType type(int port) const { return context->GetDynamicInputDesc(port, 0)->GetDataType(); }

  int64_t size(int port, int64_t dim, int64_t element = 0) const {
    const gert::Shape& all = shape(port, element);
    return all.GetDim(static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(all.GetDimNum()) : dim));
  }
  int64_t product(int port, size_t from) const {
    const gert::Shape& all = shape(port);
    int64_t product = 1;
    for (size_t dim = from; dim < all.GetDimNum(); dim++) product *= all.GetDim(dim);
    return product;
  }
  int64_t elements(int port) const { return product(port, 0); }
  // The sizes of an input from one on, behind those that `to` has already.
  void rest(int port, size_t from, gert::Shape& to) const {
    const gert::Shape& all = shape(port);
    for (size_t dim = from; dim < all.GetDimNum(); dim++) to.AppendDim(all.GetDim(dim));
  }
  // All of its sizes but the last.
  void lead(int port, gert::Shape& to) const {
    const gert::Shape& all = shape(port);
    for (size_t dim = 0; dim + 1 < all.GetDimNum(); dim++) to.AppendDim(all.GetDim(dim));
  }
  int64_t item(int port) const { return ge::GetSizeByDataType(type(port)); }
  int64_t is_float32(int port) const { return type(port) == ge::DT_FLOAT; }
  // -1 where the number is not known yet, as a dimension is.
  int64_t number(int port) const {
    const gert::Tensor* tensor = context->GetInputTensor(port);
    const int64_t* value = tensor == nullptr ? nullptr : tensor->GetData<int64_t>();
    return value == nullptr ? -1 : *value;
  }
  int64_t attribute(int index) const { return *context->GetAttrs()->template GetAttrPointer<int64_t>(index); }
  int64_t truth(int index) const { return *context->GetAttrs()->template GetAttrPointer<bool>(index); }
  // A float attribute in a tiling of whole numbers.
  int64_t bits(int index) const {
    int32_t found;
    std::memcpy(&found, context->GetAttrs()->template GetAttrPointer<float>(index), sizeof(found));
    return found;
  }
  // -1 stands for a number that need not be there.
  int64_t given(int index) const { return *context->GetAttrs()->template GetAttrPointer<float>(index) != -1.0f; }
  const char* text(int index) const { return context->GetAttrs()->GetStr(index); }
  bool says(int index, const char* wanted) const { return std::strcmp(text(index), wanted) == 0; }
  bool holds(int index, const char* wanted) const { return std::strstr(text(index), wanted) != nullptr; }
  bool flag(int index, size_t at) const {
    const auto* flags = context->GetAttrs()->template GetAttrPointer<gert::TypedContinuousVector<bool>>(index);
    return at < flags->GetSize() && flags->GetData()[at];
  }
  // The shape of an input's gradient; one that nobody wants has no elements.
  void gradient(gert::Shape& to, int port, bool wanted, int64_t element = 0) const {
    to.SetDimNum(0);
    if (!wanted || !has(port)) return to.AppendDim(0);
    const gert::Shape& all = shape(port, element);
    for (size_t dim = 0; dim < all.GetDimNum(); dim++) to.AppendDim(all.GetDim(dim));
  }
  // Of the leaves of a dtype, each one's number if its gradient is wanted. Attribute `types`: "float32,int64".
  template <class Each> void wanted(int types, int needs, const char* dtype, Each each) const {
    int64_t element = 0;
    size_t leaf = 3;  // behind q, k and v
    for (const char* at = text(types); *at; leaf++) {
      const size_t length = std::strcspn(at, ",");
      if (length == std::strlen(dtype) && std::strncmp(at, dtype, length) == 0) {
        if (flag(needs, leaf)) each(element);
        element++;
      }
      at += length + (at[length] == ',');
    }
  }
  // A call that has no kernel.
  ge::graphStatus refuse(const char* reason, const char* more = "") const {
    std::fprintf(stderr, "[gr] %s: %s\n%s", context->GetNodeName(), reason, more);
    return ge::GRAPH_FAILED;
  }
};
