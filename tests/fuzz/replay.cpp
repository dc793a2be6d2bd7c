// Runs a fuzz target without a fuzzer: on each file of a folder, and on random bytes.   usage: NAME FOLDER COUNT
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "support/random.hpp"
#include "support/scale.hpp"
#include "target.hpp"

using namespace orderly::test;

namespace {

using bytes = std::vector<std::uint8_t>;

/// False: the target found fault with it.
bool run(const bytes& input, const std::string& name) {
  try {
    LLVMFuzzerTestOneInput(input.data(), input.size());
    return true;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), failure.what());
    return false;
  }
}

bytes random_bytes(std::size_t number) {
  random_engine random = make_random(number);
  bytes input(log_uniform(random, 1, 4096));
  std::generate(input.begin(), input.end(), [&] { return static_cast<std::uint8_t>(random()); });
  return input;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: %s FOLDER COUNT\n", arguments[0]);
    return 2;
  }
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[1])) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::size_t failures = 0;
  for (const std::filesystem::path& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const bytes input{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    failures += !run(input, file.string());
  }
  const std::size_t rounds = scaled(std::strtoul(arguments[2], nullptr, 10));
  for (std::size_t number = 0; number < rounds && failures == 0; ++number)
    failures += !run(random_bytes(number), "random input " + std::to_string(number));
  std::printf("%zu files, %zu random inputs, %zu failures\n", files.size(), rounds, failures);
  return failures == 0 && !files.empty() ? 0 : 1;
}
