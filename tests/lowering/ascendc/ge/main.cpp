// What the registered operators answer. Without input: their definitions, a line a port. A line of input is a call:
//   GrPack cores buffer | inputs: dtype rank sizes... values(0 or 1) value | attributes
// and its answer: rank sizes... dtype blocks workspace mode tiling...
#include <iostream>

template <class Context> static Context of(const gert::Call& call) {
  Context context;
  static_cast<gert::Call&>(context) = call;
  return context;
}

static void describe(const char* kind, const std::string& op, const std::vector<ops::Item>& items) {
  for (auto& item : items) {
    std::cout << op << " " << kind << " " << item.name << " " << item.read << " " << item.formats;
    for (auto type : item.types) std::cout << " " << type;
    std::cout << "\n";
  }
}

static void answer(const ops::OpDef& op) {
  gert::Call call;
  std::cin >> platform_ascendc::PlatformAscendC::cores >> platform_ascendc::PlatformAscendC::buffer;
  for (size_t i = 0; i < op.inputs.size(); i++) {
    int type;
    size_t rank, known;
    std::cin >> type >> rank;
    gert::Shape shape{std::vector<int64_t>(rank)};
    for (auto& size : shape.dims) std::cin >> size;
    std::cin >> known;
    gert::Tensor tensor{std::vector<int64_t>(known)};
    for (auto& value : tensor.values) std::cin >> value;
    call.shapes.push_back({shape}), call.descs.push_back({(ge::DataType)type}), call.tensors.push_back(tensor);
  }
  call.attrs.values.resize(op.attributes.size());
  for (auto& value : call.attrs.values) std::cin >> value;
  auto shape = of<gert::InferShapeContext>(call);
  auto type = of<gert::InferDataTypeContext>(call);
  auto tiling = of<gert::TilingContext>(call);
  op.infer_shape(&shape), op.infer_type(&type), op.tile(&tiling);
  std::cout << shape.out.dims.size();
  for (auto size : shape.out.dims) std::cout << " " << size;
  std::cout << " " << type.out << " " << tiling.blocks << " " << tiling.workspace - (16 << 20) << " " << tiling.mode;
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
