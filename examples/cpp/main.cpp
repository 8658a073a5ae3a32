// Runs a picture through a tunable network for one or more values of lambda, without Python.
//   tunable_picture network.pt2 picture.ppm 1,0 denoised.ppm 0,1 kept.ppm
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Reads the next number of a PNM header. Comments run from # to the end of the line.
int64_t header_number(std::istream& file, const std::string& path) {
  while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');
  int64_t value = 0;
  if (!(file >> value) || value <= 0)
    throw std::runtime_error(path + ": the header must hold width, height and maximum");
  return value;
}

// Reads an 8-bit binary PPM as [1, 3, H, W] with values in [0, 1]. The file stores [H, W, 3], so this is channels_last.
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  std::string magic(2, ' ');
  file.read(magic.data(), 2);
  if (magic != "P6") throw std::runtime_error(path + ": must be a binary PPM (P6)");
  const int64_t width = header_number(file, path), height = header_number(file, path);
  if (header_number(file, path) != 255) throw std::runtime_error(path + ": must have 8 bits per channel (maximum 255)");
  file.get();  // a single whitespace character ends the header
  at::Tensor bytes = at::empty({1, height, width, 3}, at::kByte);
  file.read(reinterpret_cast<char*>(bytes.mutable_data_ptr<uint8_t>()), bytes.numel());
  if (file.gcount() != bytes.numel()) throw std::runtime_error(path + ": ends before its last pixel");
  return bytes.to(at::kFloat).div_(255).permute({0, 3, 1, 2});
}

void write_ppm(const std::string& path, const at::Tensor& picture) {
  const at::Tensor bytes = picture[0].permute({1, 2, 0}).clamp(0, 1).mul(255).round().to(at::kByte).contiguous();
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << bytes.size(1) << ' ' << bytes.size(0) << "\n255\n";
  file.write(reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>()), bytes.numel());
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

// Parses "0.3,0.7" to a tensor [2].
at::Tensor read_lambda(const std::string& text) {
  std::vector<float> values;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) values.push_back(std::stof(word));
  return at::tensor(values);
}

void run(const std::vector<std::string>& words) {
  const at::Tensor picture = read_ppm(words[1]);
  torch::inductor::AOTIModelPackageLoader network(words[0]);
  for (size_t i = 2; i + 1 < words.size(); i += 2) {
    // In the order of export.py: picture, lambda.
    const std::vector<at::Tensor> outputs = network.run({picture, read_lambda(words[i])});
    write_ppm(words[i + 1], outputs.at(0));
    std::cout << words[i] << " -> " << words[i + 1] << '\n';
  }
}

}  // namespace

int main(int count, char** words) {
  if (count < 5 || count % 2 == 0) {
    std::cerr << "usage: tunable_picture network.pt2 picture.ppm LAMBDA out.ppm [LAMBDA out.ppm ...]\n";
    return 2;
  }
  try {
    run({words + 1, words + count});
  } catch (const std::exception& error) {
    std::cerr << "tunable_picture: " << error.what() << '\n';
    return 1;
  }
}
