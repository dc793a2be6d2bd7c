// Linked to a test, makes it run as on a system without the asymmetric barrier.
#include <doctest/doctest.h>

#include "atomic.hpp"

namespace {

using orderly::detail::asymmetric_barrier;

struct without_barrier {
  without_barrier() { asymmetric_barrier::forgo(); }
} const before_main;

}  // namespace

TEST_CASE("the barrier is missing") {
  asymmetric_barrier::prepare();
  CHECK_FALSE(asymmetric_barrier::available());
}
