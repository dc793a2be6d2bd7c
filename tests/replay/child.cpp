// Work in a process of its own: bench/replay/child.hpp.
#include "child.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

using namespace orderly::bench;

namespace {

const auto no_wait = [] {};

}  // namespace

TEST_CASE("what a child writes to a shared array reaches the parent, and nothing else does") {
  const shared_array<int> values(1000);
  int own = 0;
  const std::string error = run_in_child(
      [&] {
        own = 1;
        for (int i = 0; i < 1000; ++i) values.values()[static_cast<std::size_t>(i)] = i;
      },
      no_wait);
  CHECK(error.empty());
  CHECK(own == 0);
  CHECK(values.values()[0] == 0);
  CHECK(values.values()[999] == 999);
}

TEST_CASE("an exception's message reaches the parent, whatever its length") {
  CHECK(run_in_child([] { throw std::runtime_error("no such luck"); }, no_wait) == "no such luck");
  const std::string text(20000, 'x');
  CHECK(run_in_child([&] { throw std::runtime_error(text); }, no_wait) == text);
  CHECK(run_in_child([] { throw std::runtime_error(""); }, no_wait) == "the process failed without a message");
}

TEST_CASE("a child that is killed takes nothing down") {
  CHECK(run_in_child([] { std::raise(SIGKILL); }, no_wait) == "the process was ended by: Killed");
  CHECK(run_in_child([] { _Exit(3); }, no_wait) == "the process failed without a message");
}

TEST_CASE("the parent is called while it waits") {
  int calls = 0;
  const auto sleep = [] { std::this_thread::sleep_for(std::chrono::milliseconds(700)); };
  CHECK(run_in_child(sleep, [&] { ++calls; }).empty());
  CHECK(calls >= 1);
}

TEST_CASE("an empty shared array") { CHECK(shared_array<double>(0).values().empty()); }
