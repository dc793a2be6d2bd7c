/// \file
/// What a call prints on stderr, and how a process ends in which something must go wrong.
#pragma once

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace orderly::test {

/// While it lives, stderr goes to a file; text() tells what was written so far.
class captured_stderr {
 public:
  captured_stderr() : file_(std::tmpfile()), saved_(dup(STDERR_FILENO)) {
    if (file_ == nullptr || saved_ < 0) throw std::runtime_error("no temporary file for stderr");
    std::fflush(stderr);
    dup2(fileno(file_), STDERR_FILENO);
  }
  captured_stderr(const captured_stderr&) = delete;
  captured_stderr& operator=(const captured_stderr&) = delete;
  ~captured_stderr() {
    std::fflush(stderr);
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    std::fclose(file_);
  }

  [[nodiscard]] std::string text() const {
    std::fflush(stderr);
    std::string all;
    char part[512];
    off_t offset = 0;
    for (ssize_t length; (length = pread(fileno(file_), part, sizeof part, offset)) > 0; offset += length) {
      all.append(part, static_cast<std::size_t>(length));
    }
    return all;
  }

 private:
  std::FILE* file_;
  int saved_;
};

/// How a child process ended.
struct child_end {
  int signal = 0;  ///< that killed it; 0: it exited
  int status = 0;  ///< that it exited with
  std::string output;
};

/// Runs `body` in a child process, which exits with 0 if the body returns, with 125 if it throws. Only from a process with one thread.
[[nodiscard]] inline child_end run_child(const std::function<void()>& body) {
  const captured_stderr capture;
  std::fflush(stdout);  // a child that exits would print it again
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("no child process");
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    std::signal(SIGABRT, SIG_DFL);  // doctest's handler would report the test as failed
    try {
      body();
    } catch (...) {
      _exit(125);  // the rest of the tests is the parent's
    }
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return {WIFSIGNALED(status) ? WTERMSIG(status) : 0, WIFEXITED(status) ? WEXITSTATUS(status) : 0, capture.text()};
}

}  // namespace orderly::test
