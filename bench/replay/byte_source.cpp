#include "byte_source.hpp"

#include <archive.h>
#include <archive_entry.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <system_error>

#include "trace.hpp"

extern char** environ;

namespace orderly::bench {

namespace {

constexpr std::size_t piece = std::size_t{64} << 10;

/// A file through libarchive, which recognises the compression by content.
class archive_source final : public byte_source {
 public:
  explicit archive_source(const std::filesystem::path& file) : name_(file.string()), archive_(archive_read_new()) {
    if (archive_ == nullptr) throw bad_input(name_ + ": out of memory");
    // Named one by one: the set of all filters includes some that run external programs.
    archive_read_support_filter_gzip(archive_.get());
    archive_read_support_filter_bzip2(archive_.get());
    archive_read_support_filter_xz(archive_.get());
    archive_read_support_filter_zstd(archive_.get());
    archive_read_support_format_raw(archive_.get());
    archive_read_support_format_empty(archive_.get());
    check(archive_read_open_filename(archive_.get(), name_.c_str(), piece));
    archive_entry* entry = nullptr;
    const int outcome = archive_read_next_header(archive_.get(), &entry);
    empty_ = outcome == ARCHIVE_EOF;
    if (!empty_) check(outcome);
  }

  bool append_to(std::string& buffer) override {
    if (empty_) return false;
    const std::size_t before = buffer.size();
    buffer.resize(before + piece);
    const la_ssize_t count = archive_read_data(archive_.get(), buffer.data() + before, piece);
    buffer.resize(before + (count > 0 ? static_cast<std::size_t>(count) : 0));
    if (count < 0) check(static_cast<int>(count));
    return count > 0;
  }

 private:
  struct closer {
    void operator()(archive* open) const noexcept { archive_read_free(open); }
  };

  void check(int outcome) const {
    if (outcome == ARCHIVE_OK) return;
    const char* why = archive_error_string(archive_.get());
    throw bad_input(name_ + ": " + (why != nullptr ? why : "cannot be read"));
  }

  std::string name_;
  std::unique_ptr<archive, closer> archive_;
  bool empty_ = false;
};

/// What snapshot_to_csv.py writes to its standard output. Its own messages go to standard error.
class snapshot_source final : public byte_source {
 public:
  explicit snapshot_source(const std::filesystem::path& file) : name_(file.string()) {
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) throw bad_input(name_ + ": " + std::strerror(errno));
    output_ = ends[0];
    const int outcome = start(ends);
    close(ends[1]);
    if (outcome != 0) {
      close(output_);
      throw bad_input(name_ + ": python3, which reads PyTorch snapshots, cannot be started: " +
                      std::strerror(outcome));
    }
  }

  ~snapshot_source() override {
    close(output_);
    if (child_ != 0) waitpid(child_, nullptr, 0);
  }

  bool append_to(std::string& buffer) override {
    std::array<char, piece> bytes;
    ssize_t count = 0;
    do {
      count = read(output_, bytes.data(), bytes.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) throw bad_input(name_ + ": " + std::strerror(errno));
    buffer.append(bytes.data(), static_cast<std::size_t>(count));
    if (count == 0) finish();
    return count > 0;
  }

 private:
  int start(const std::array<int, 2>& ends) {
    std::string script = ORDERLY_SNAPSHOT_TO_CSV;
    std::array<char*, 4> arguments{const_cast<char*>("python3"), script.data(), name_.data(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    const int outcome = posix_spawnp(&child_, "python3", &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (outcome != 0) child_ = 0;
    return outcome;
  }

  void finish() {
    if (child_ == 0) return;
    int status = 0;
    const pid_t waited = waitpid(child_, &status, 0);
    child_ = 0;
    if (waited < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
      throw bad_input(name_ + ": snapshot_to_csv.py could not convert it");
  }

  std::string name_;
  int output_ = -1;
  pid_t child_ = 0;
};

}  // namespace

std::unique_ptr<byte_source> open_bytes(const std::filesystem::path& file) {
  std::error_code unreadable;
  if (std::filesystem::is_directory(file, unreadable)) throw bad_input(file.string() + ": is a directory");
  const std::filesystem::path extension = file.extension();
  if (extension == ".pickle" || extension == ".pkl" || extension == ".json") {
    if (!std::filesystem::exists(file, unreadable)) throw bad_input(file.string() + ": no such file");
    return std::make_unique<snapshot_source>(file);
  }
  return std::make_unique<archive_source>(file);
}

}  // namespace orderly::bench
