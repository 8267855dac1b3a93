// The part of GE's interface that a printed op_host uses, as far as the tests need it: definitions are kept, contexts
// hold one call. Written from the documents of CANN; nothing of it is CANN's.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

namespace ge {
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 1;
enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_INT32 = 3, DT_INT64 = 9, DT_BOOL = 12, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };
inline int GetSizeByDataType(DataType type) {
  return type == DT_BOOL ? 1 : type == DT_FLOAT16 || type == DT_BF16 ? 2 : type == DT_INT64 ? 8 : 4;
}
}  // namespace ge

namespace gert {
struct Shape {
  std::vector<int64_t> dims;
  size_t GetDimNum() const { return dims.size(); }
  int64_t GetDim(size_t i) const { return dims.at(i); }
  void SetDimNum(size_t n) { dims.resize(n); }
  void AppendDim(int64_t size) { dims.push_back(size); }
};
struct StorageShape {
  Shape shape;
  const Shape& GetStorageShape() const { return shape; }
};
struct Tensor {
  std::vector<int64_t> values;
  template <class T> const T* GetData() const { return values.empty() ? nullptr : values.data(); }
};
struct Desc {
  ge::DataType type;
  ge::DataType GetDataType() const { return type; }
};
template <class T> struct TypedContinuousVector {
  size_t count = 0;
  T values[64] = {};
  size_t GetSize() const { return count; }
  const T* GetData() const { return values; }
};
struct Attribute {
  int64_t number = 0;
  float real = 0;
  bool truth = false;
  std::string text;
  TypedContinuousVector<bool> flags;
};
struct RuntimeAttrs {
  std::vector<Attribute> values;
  template <class T> const T* GetAttrPointer(size_t i) const {
    if constexpr (std::is_same<T, int64_t>::value) return &values.at(i).number;
    else if constexpr (std::is_same<T, float>::value) return &values.at(i).real;
    else if constexpr (std::is_same<T, bool>::value) return &values.at(i).truth;
    else return &values.at(i).flags;
  }
  const char* GetStr(size_t i) const { return values.at(i).text.c_str(); }
};
struct AnchorInstanceInfo {
  size_t count;
  size_t GetInstanceNum() const { return count; }
};
struct Call {  // inputs as the definition counts them, and the elements of each
  std::string name = "node";
  std::vector<std::vector<StorageShape>> shapes;
  std::vector<std::vector<Desc>> descs;
  std::vector<Tensor> tensors;
  std::vector<AnchorInstanceInfo> counts;
  RuntimeAttrs attrs;
  const char* GetNodeName() const { return name.c_str(); }
  const Tensor* GetInputTensor(size_t i) const { return &tensors.at(i); }
  const RuntimeAttrs* GetAttrs() const { return &attrs; }
  const AnchorInstanceInfo* GetIrInputInstanceInfo(size_t i) const { return &counts.at(i); }
  const Desc* GetDynamicInputDesc(size_t i, size_t element) const { return &descs.at(i).at(element); }
};
struct InferShapeContext : Call {
  std::vector<Shape> outs;
  const Shape* GetDynamicInputShape(size_t i, size_t element) const { return &shapes.at(i).at(element).shape; }
  Shape* GetOutputShape(size_t i) { return &outs.at(i); }
};
struct InferDataTypeContext : Call {
  std::vector<ge::DataType> outs;
  ge::DataType GetInputDataType(size_t i) const { return descs.at(i).at(0).type; }
  ge::DataType GetDynamicInputDataType(size_t i, size_t element) const { return descs.at(i).at(element).type; }
  void SetOutputDataType(size_t i, ge::DataType type) { outs.at(i) = type; }
};
struct TilingContext : Call {
  std::vector<int64_t> tiling = std::vector<int64_t>(256, -1);
  size_t fields = 0, workspace = 0;
  uint32_t blocks = 0, mode = 0;
  uint64_t key = 0;
  const StorageShape* GetDynamicInputShape(size_t i, size_t element) const { return &shapes.at(i).at(element); }
  const void* GetPlatformInfo() const { return nullptr; }
  template <class T> T* GetTilingData() {
    fields = sizeof(T) / sizeof(int64_t);
    return reinterpret_cast<T*>(tiling.data());
  }
  size_t* GetWorkspaceSizes(size_t) { return &workspace; }
  void SetBlockDim(uint32_t n) { blocks = n; }
  void SetScheduleMode(uint32_t n) { mode = n; }
  void SetTilingKey(uint64_t n) { key = n; }
};
}  // namespace gert

namespace platform_ascendc {
enum class CoreMemType { UB };
struct PlatformAscendC {
  explicit PlatformAscendC(const void*) {}
  static inline uint64_t vector_cores = 0, cube_cores = 0, buffer = 0;
  uint32_t GetCoreNumAiv() const { return vector_cores; }
  uint32_t GetCoreNumAic() const { return cube_cores; }
  void GetCoreMemSize(CoreMemType, uint64_t& size) const { size = buffer; }
  size_t GetLibApiWorkSpaceSize() const { return 16 << 20; }
};
}  // namespace platform_ascendc

namespace ops {
enum Option { REQUIRED, OPTIONAL, DYNAMIC };
enum Kind { INT, FLOAT, BOOL, STRING, LIST_BOOL };
struct Item {
  std::string name;
  std::vector<ge::DataType> types;
  size_t formats = 0;
  bool read = false;
  Option option = REQUIRED;
  Kind kind = INT;
  Item& ParamType(Option x) { option = x; return *this; }
  Item& AttrType(Option x) { option = x; return *this; }
  Item& Int() { kind = INT; return *this; }
  Item& Float() { kind = FLOAT; return *this; }
  Item& Bool() { kind = BOOL; return *this; }
  Item& String() { kind = STRING; return *this; }
  Item& ListBool() { kind = LIST_BOOL; return *this; }
  Item& DataType(std::vector<ge::DataType> all) { types = all; return *this; }
  Item& Format(std::vector<ge::Format> all) { formats = all.size(); return *this; }
  Item& UnknownShapeFormat(std::vector<ge::Format> all) { formats += all.size(); return *this; }
  Item& ValueDepend(Option) { read = true; return *this; }
};
class OpDef {
 public:
  explicit OpDef(const char*) {}
  std::vector<Item> inputs, outputs, attributes;
  std::vector<std::string> configs;
  ge::graphStatus (*infer_shape)(gert::InferShapeContext*) = nullptr;
  ge::graphStatus (*infer_type)(gert::InferDataTypeContext*) = nullptr;
  ge::graphStatus (*tile)(gert::TilingContext*) = nullptr;
  Item& Input(const char* name) { return add(inputs, name); }
  Item& Output(const char* name) { return add(outputs, name); }
  Item& Attr(const char* name) { return add(attributes, name); }
  OpDef& SetInferShape(decltype(infer_shape) f) { infer_shape = f; return *this; }
  OpDef& SetInferDataType(decltype(infer_type) f) { infer_type = f; return *this; }
  OpDef& AICore() { return *this; }
  OpDef& SetTiling(decltype(tile) f) { tile = f; return *this; }
  OpDef& AddConfig(const char* soc) { configs.push_back(soc); return *this; }

 private:
  static Item& add(std::vector<Item>& all, const char* name) {
    all.push_back({name});
    return all.back();
  }
};
inline std::map<std::string, OpDef>& registered() {
  static std::map<std::string, OpDef> all;
  return all;
}
}  // namespace ops
#define OP_ADD(Type) static const bool added_##Type = registered().emplace(#Type, Type(#Type)).second
