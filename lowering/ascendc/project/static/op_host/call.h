// What the formulas of tilings and shapes ask of a call, answered by GE's context.
#pragma once
#include "graph/utils/type_utils.h"
#include "register/op_impl_registry.h"

template <class Context> struct Call {
  Context* context;

  static const gert::Shape& plain(const gert::Shape* shape) { return *shape; }
  static const gert::Shape& plain(const gert::StorageShape* shape) { return shape->GetStorageShape(); }
  const gert::Shape& shape(int port) const { return plain(context->GetInputShape(port)); }

  int64_t size(int port, int64_t dim) const {
    const gert::Shape& all = shape(port);
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
  int64_t item(int port) const { return ge::GetSizeByDataType(context->GetInputDesc(port)->GetDataType()); }
  int64_t is_float32(int port) const { return context->GetInputDesc(port)->GetDataType() == ge::DT_FLOAT; }
  // -1 where the number is not known yet, as a dimension is.
  int64_t number(int port) const {
    const gert::Tensor* tensor = context->GetInputTensor(port);
    const int64_t* value = tensor == nullptr ? nullptr : tensor->GetData<int64_t>();
    return value == nullptr ? -1 : *value;
  }
  int64_t attribute(int index) const { return *context->GetAttrs()->template GetAttrPointer<int64_t>(index); }
};
