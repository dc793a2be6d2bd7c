#include "child.hpp"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace orderly::bench {

namespace {

[[noreturn]] void run_and_exit(const std::function<void()>& task, int output) {
  int status = EXIT_SUCCESS;
  try {
    task();
  } catch (const std::exception& error) {
    status = EXIT_FAILURE;
    const char* const text = error.what();
    // A message that cannot be written leaves the exit status to tell of the failure.
    [[maybe_unused]] const ssize_t written = write(output, text, std::strlen(text));
  }
  // Neither the parent's buffers nor its objects are the child's to flush or destroy.
  _exit(status);
}

/// Everything that the child writes until it ends.
std::string read_all(int input, const std::function<void()>& idle) {
  constexpr int milliseconds = 200;
  std::string text;
  std::array<char, 512> bytes;
  for (;;) {
    pollfd ready{input, POLLIN, 0};
    const int count = poll(&ready, 1, milliseconds);
    if (count == 0) idle();
    if (count <= 0) continue;
    const ssize_t length = read(input, bytes.data(), bytes.size());
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0) return text;
    text.append(bytes.data(), static_cast<std::size_t>(length));
  }
}

std::string describe(int status, const std::string& message) {
  if (WIFSIGNALED(status)) return std::string("the process was ended by: ") + strsignal(WTERMSIG(status));
  if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS) return {};
  return message.empty() ? "the process failed without a message" : message;
}

}  // namespace

std::string run_in_child(const std::function<void()>& task, const std::function<void()>& idle) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return std::strerror(errno);
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    run_and_exit(task, ends[1]);
  }
  const int failure = errno;
  close(ends[1]);
  std::string message = child > 0 ? read_all(ends[0], idle) : std::strerror(failure);
  close(ends[0]);
  if (child < 0) return message;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return describe(status, message);
}

}  // namespace orderly::bench
