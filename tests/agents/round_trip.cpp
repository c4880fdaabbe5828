// Read a tensor file with the native agents' code, print its values and write it again.
#include "tensor_file.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto tensors = edgebench::read_tensors(argv[1]);
  std::ofstream out(argv[2], std::ios::binary);
  out << "EBT1 " << tensors.size() << "\n";
  for (const auto& tensor : tensors) {
    out << tensor.dtype << " ";
    for (size_t i = 0; i < tensor.shape.size(); ++i) out << (i ? "," : "") << tensor.shape[i];
    out << "\n";
    std::printf("%s", tensor.kind().c_str());
    for (size_t i = 0; i < tensor.data.size() / edgebench::item_bytes(tensor.dtype); ++i) {
      std::printf(" %.17g", edgebench::value_at(tensor.dtype, tensor.data.data(), i));
    }
    std::printf("\n");
  }
  for (const auto& tensor : tensors) out.write(tensor.data.data(), static_cast<std::streamsize>(tensor.data.size()));
}
