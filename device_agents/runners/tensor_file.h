// Tensor files (.ebt) and how far two tensors are apart (PROTOCOL.md).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "wire.h"

namespace edgebench {

/// One array: *data* holds its values in C order, little-endian, as this machine is.
struct Tensor {
  std::string dtype;
  std::vector<int32_t> shape;
  std::vector<char> data;

  std::string kind() const {
    std::string out;
    for (const int32_t size : shape) out += (out.empty() ? "" : ", ") + std::to_string(size);
    return dtype + "[" + out + "]";
  }
};

inline size_t item_bytes(const std::string& dtype) {
  if (dtype == "float64" || dtype == "int64") return 8;
  if (dtype == "float32" || dtype == "int32") return 4;
  if (dtype == "float16" || dtype == "int16") return 2;
  if (dtype == "int8" || dtype == "uint8" || dtype == "bool") return 1;
  throw Failure("agent_failed", "dtype " + dtype + " is not known");
}

inline std::vector<Tensor> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string word, line;
  size_t count = 0;
  if (!std::getline(file, line) || !(std::istringstream(line) >> word >> count) || word != "EBT1") {
    throw Failure("agent_failed", path + " is not a tensor file");
  }
  std::vector<Tensor> tensors(count);
  for (Tensor& tensor : tensors) {
    std::getline(file, line);
    const size_t space = line.find(' ');
    tensor.dtype = line.substr(0, space);
    std::istringstream dims(space == std::string::npos ? "" : line.substr(space + 1));
    for (std::string size; std::getline(dims, size, ',');) tensor.shape.push_back(std::stoi(size));
    size_t bytes = item_bytes(tensor.dtype);
    for (const int32_t size : tensor.shape) bytes *= static_cast<size_t>(size);
    tensor.data.resize(bytes);
  }
  for (Tensor& tensor : tensors) {
    if (!file.read(tensor.data.data(), static_cast<std::streamsize>(tensor.data.size()))) {
      throw Failure("agent_failed", path + " ends too early");
    }
  }
  return tensors;
}

inline double half_to_double(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

template <class T>
double item(const char* data, size_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof value, sizeof value);
  return static_cast<double>(value);
}

inline double value_at(const std::string& dtype, const char* data, size_t i) {
  if (dtype == "float32") return item<float>(data, i);
  if (dtype == "float64") return item<double>(data, i);
  if (dtype == "float16") {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * i, 2);
    return half_to_double(bits);
  }
  if (dtype == "int64") return item<int64_t>(data, i);
  if (dtype == "int32") return item<int32_t>(data, i);
  if (dtype == "int16") return item<int16_t>(data, i);
  if (dtype == "int8") return item<int8_t>(data, i);
  return item<uint8_t>(data, i);
}

/// Sums over all sets of one output. NaNs and infinities must be in the same places.
struct Difference {
  double signal = 0, noise = 0, worst = 0;

  void add(const Tensor& wanted, const char* found) {
    const size_t count = wanted.data.size() / item_bytes(wanted.dtype);
    for (size_t i = 0; i < count; ++i) {
      const double x = value_at(wanted.dtype, found, i), y = value_at(wanted.dtype, wanted.data.data(), i);
      double off = x == y || (std::isnan(x) && std::isnan(y)) ? 0.0 : std::abs(x - y);
      if (std::isnan(off)) off = std::numeric_limits<double>::infinity();
      if (std::isfinite(y)) signal += y * y;
      noise += off * off;
      worst = std::max(worst, off);
    }
  }

  double sqnr_db() const {
    return noise == 0 ? 200.0 : 10 * std::log10(std::min(std::max(signal / noise, 1e-20), 1e20));
  }
};

}  // namespace edgebench
