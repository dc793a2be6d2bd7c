/// \file
/// A progress bar on a terminal.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace orderly::bench {

/// Draws on standard error, if that is a terminal, and only when the work takes longer than a second.
class progress {
 public:
  explicit progress(std::size_t steps);
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() { clear(); }

  /// What is being worked on from now.
  void begin(std::string label) { label_ = std::move(label); }
  void finish_step() { ++done_; }

  /// Brings the bar up to date.
  void refresh();

  /// Removes the bar from the screen, before other output.
  void clear();

 private:
  bool terminal_;
  std::size_t steps_;
  std::size_t done_ = 0;
  std::string label_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

}  // namespace orderly::bench
