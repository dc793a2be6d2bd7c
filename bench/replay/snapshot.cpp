#include "snapshot.hpp"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

extern char** environ;

namespace orderly::bench {

namespace {

struct file_closer {
  void operator()(std::FILE* open) const noexcept { std::fclose(open); }
};

/// The exit status of the converter, or -1: a signal ended it.
int convert(std::FILE* document, std::string file) {
  std::string script = ORDERLY_STATE_TO_SNAPSHOT;
  std::array<char*, 4> arguments{const_cast<char*>("python3"), script.data(), file.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fileno(document), STDIN_FILENO);
  pid_t child = 0;
  const int outcome = posix_spawnp(&child, "python3", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (outcome != 0)
    throw std::runtime_error(file + ": python3, which writes PyTorch snapshots, cannot be started: " +
                             std::strerror(outcome));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

bool is_snapshot_name(const std::filesystem::path& file) {
  return file.extension() == ".pickle" || file.extension() == ".pkl";
}

void write_snapshot(const std::filesystem::path& file, const std::string& document) {
  const std::unique_ptr<std::FILE, file_closer> input(std::tmpfile());
  if (input == nullptr || std::fwrite(document.data(), 1, document.size(), input.get()) != document.size() ||
      std::fflush(input.get()) != 0)
    throw std::runtime_error(file.string() + ": no temporary file for what is to be converted");
  std::rewind(input.get());
  if (convert(input.get(), file.string()) != 0)
    throw std::runtime_error(file.string() + ": state_to_snapshot.py could not write it");
}

}  // namespace orderly::bench
