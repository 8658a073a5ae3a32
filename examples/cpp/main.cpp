// Runs a picture through a tunable network for one or more values of lambda, without Python.
//   tunable_picture denoise.pt2 picture.ppm sigma=25 smooth.ppm sigma=25,texture=0.8 fine.ppm
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
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

using Metadata = std::unordered_map<std::string, std::string>;

struct Parameter {
  std::string name, unit;
  float start, low, high;
};

const std::string& entry(const Metadata& metadata, const std::string& name) {
  const auto found = metadata.find("tunable_ops." + name);
  if (found == metadata.end())
    throw std::runtime_error("the package has no tunable_ops." + name + ": use tunable-ops export");
  return found->second;
}

// The tuning parameters: a line for each, with name, default, low, high and unit between tabs.
std::vector<Parameter> read_parameters(const Metadata& metadata) {
  std::vector<Parameter> parameters;
  std::istringstream lines(entry(metadata, "parameters"));
  for (std::string line; std::getline(lines, line);) {
    std::vector<std::string> cells(1);
    for (const char letter : line) {
      if (letter == '\t')
        cells.emplace_back();
      else
        cells.back() += letter;
    }
    parameters.push_back(
        {cells.at(0), cells.at(4), std::stof(cells.at(1)), std::stof(cells.at(2)), std::stof(cells.at(3))});
  }
  return parameters;
}

float read_number(const std::string& text) {
  char* end = nullptr;
  const float value = std::strtof(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value))
    throw std::runtime_error("lambda must be numbers; got " + text);
  return value;
}

// Parses "sigma=25,texture=0.5", where what is left out has its default, or one number for each, "25,0.5".
at::Tensor read_lambda(const std::string& text, const std::vector<Parameter>& parameters, bool sums_to_one) {
  std::string names;
  std::vector<float> values;
  for (const Parameter& parameter : parameters) {
    names += (names.empty() ? "" : ", ") + parameter.name;
    values.push_back(parameter.start);
  }
  size_t count = 0;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ','); ++count) {
    const size_t sign = word.find('=');
    size_t place = count;
    if (sign != std::string::npos)
      for (place = 0; place < parameters.size() && parameters[place].name != word.substr(0, sign);) ++place;
    if (place >= parameters.size()) throw std::runtime_error("lambda must be of " + names + "; got " + word);
    values[place] = read_number(sign == std::string::npos ? word : word.substr(sign + 1));
    const Parameter& parameter = parameters[place];
    if (!(parameter.low <= values[place] && values[place] <= parameter.high))
      std::cerr << "tunable_picture: warning: " << parameter.name << " = " << values[place] << ' ' << parameter.unit
                << " is outside the range of the training, " << parameter.low << " to " << parameter.high << '\n';
  }
  const bool by_name = text.find('=') != std::string::npos;
  if (count != parameters.size() && (sums_to_one || !by_name))
    throw std::runtime_error("lambda must give a number to each of " + names + "; got " + text);
  return at::tensor(values);
}

void run(const std::vector<std::string>& words) {
  at::Tensor picture = read_ppm(words[1]);
  torch::inductor::AOTIModelPackageLoader network(words[0]);
  const Metadata metadata = network.get_metadata();
  const bool folded = entry(metadata, "form") == "folded";
  if (!folded && entry(metadata, "form") != "shared")
    throw std::runtime_error(words[0] + ": must take one lambda for all pictures; got " + entry(metadata, "form"));
  // Compiled code takes the strides of its inputs as given: channels_last for the operators, as the file was read.
  if (metadata.find("tunable_ops.operators") == metadata.end()) picture = picture.contiguous();
  const int64_t smallest = std::stoll(entry(metadata, "smallest"));
  if (std::min(picture.size(2), picture.size(3)) < smallest)
    throw std::runtime_error(words[1] + ": must have at least " + std::to_string(smallest) + " pixels on each side");
  for (size_t i = 2; i + 1 < words.size(); i += 2) {
    std::vector<at::Tensor> inputs = {picture};
    if (!folded)
      inputs.push_back(read_lambda(words[i], read_parameters(metadata), entry(metadata, "domain") == "simplex"));
    write_ppm(words[i + 1], network.run(inputs).at(0));
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
