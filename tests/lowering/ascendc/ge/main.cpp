// What the registered operators answer. Without input: their definitions, a line a port. A line of input is a call:
//   GrPack vector_cores cube_cores buffer | inputs | attributes | for each dynamic output its number of elements
// An input is: dtype rank sizes... values(0 or 1) value; one that is optional or dynamic has its number of elements in
// front. An attribute is a number, whole, real or 0 and 1; a string's bytes behind their number; flags behind theirs. The answer:
//   for each output rank sizes... dtype | blocks workspace mode key tiling...       or: failed
#include <iostream>

template <class Context> static Context of(const gert::Call& call) {
  Context context;
  static_cast<gert::Call&>(context) = call;
  return context;
}

static void describe(const char* kind, const std::string& op, const std::vector<ops::Item>& items) {
  for (auto& item : items) {
    std::cout << op << " " << kind << " " << item.name << " " << item.option << " " << item.read << " " << item.formats;
    for (auto type : item.types) std::cout << " " << type;
    std::cout << "\n";
  }
}

static size_t elements(const ops::Item& item) {
  size_t count = 1;
  if (item.option != ops::REQUIRED) std::cin >> count;
  return count;
}

static void read_input(const ops::Item& item, gert::Call& call) {
  const size_t count = elements(item);
  call.counts.push_back({count}), call.shapes.emplace_back(), call.descs.emplace_back();
  gert::Tensor tensor;
  for (size_t i = 0; i < count; i++) {
    int type;
    size_t rank, known;
    std::cin >> type >> rank;
    gert::Shape shape{std::vector<int64_t>(rank)};
    for (auto& size : shape.dims) std::cin >> size;
    std::cin >> known;
    tensor.values.resize(known);
    for (auto& value : tensor.values) std::cin >> value;
    call.shapes.back().push_back({shape}), call.descs.back().push_back({(ge::DataType)type});
  }
  call.tensors.push_back(tensor);
}

static gert::Attribute read_attribute(const ops::Item& item) {
  gert::Attribute found;
  if (item.kind == ops::INT) std::cin >> found.number;
  if (item.kind == ops::FLOAT) std::cin >> found.real;
  if (item.kind == ops::BOOL) std::cin >> found.truth;
  if (item.kind == ops::STRING) {
    size_t count;
    std::cin >> count;
    std::cin.get();
    found.text.resize(count);
    std::cin.read(found.text.data(), (std::streamsize)count);
  }
  if (item.kind == ops::LIST_BOOL) {
    std::cin >> found.flags.count;
    for (size_t i = 0; i < found.flags.count; i++) std::cin >> found.flags.values[i];
  }
  return found;
}

static void answer(const ops::OpDef& op) {
  gert::Call call;
  using platform_ascendc::PlatformAscendC;
  std::cin >> PlatformAscendC::vector_cores >> PlatformAscendC::cube_cores >> PlatformAscendC::buffer;
  for (auto& item : op.inputs) read_input(item, call);
  for (auto& item : op.attributes) call.attrs.values.push_back(read_attribute(item));
  size_t outputs = 0;
  for (auto& item : op.outputs) outputs += elements(item);
  auto shape = of<gert::InferShapeContext>(call);
  auto type = of<gert::InferDataTypeContext>(call);
  auto tiling = of<gert::TilingContext>(call);
  shape.outs.resize(outputs), type.outs.resize(outputs);
  op.infer_shape(&shape), op.infer_type(&type);
  if (op.tile(&tiling) != ge::GRAPH_SUCCESS) {
    std::cout << "failed\n";
    return;
  }
  for (size_t i = 0; i < outputs; i++) {
    std::cout << shape.outs[i].dims.size();
    for (auto size : shape.outs[i].dims) std::cout << " " << size;
    std::cout << " " << type.outs[i] << " ";
  }
  std::cout << tiling.blocks << " " << tiling.workspace - (16 << 20) << " " << tiling.mode << " " << tiling.key;
  for (size_t i = 0; i < tiling.fields; i++) std::cout << " " << tiling.tiling[i];
  std::cout << "\n";
}

int main(int count, char**) {
  std::string name;
  if (count > 1)
    while (std::cin >> name) answer(ops::registered().at(name));
  else
    for (auto& [op, definition] : ops::registered()) {
      describe("input", op, definition.inputs), describe("output", op, definition.outputs);
      describe("attribute", op, definition.attributes);
    }
}
