#include "replay.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "errors.hpp"
#include "interpreter.hpp"
#include "orderly/pool.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// One call of a trace: an allocation into a slot, or the free of what is there.
struct call {
  std::uint64_t slot;
  std::uint64_t bytes;  ///< free: of a free
};
constexpr std::uint64_t free_mark = std::numeric_limits<std::uint64_t>::max();

struct outcome {
  statistics stats;
  double seconds = 0;
  std::size_t refused = 0;
};

outcome run(const std::vector<call>& calls, std::size_t slots, const options& settings) {
  pool tested(settings);
  std::vector<std::pair<void*, std::size_t>> blocks(slots);
  outcome result;
  const auto start = std::chrono::steady_clock::now();
  for (const call& each : calls) {
    auto& [block, bytes] = blocks[each.slot];
    if (each.bytes == free_mark) {
      if (block != nullptr) tested.deallocate(block, bytes);
      block = nullptr;
    } else {
      block = tested.try_allocate(each.bytes);
      bytes = each.bytes == 0 ? 1 : each.bytes;
      result.refused += block == nullptr;
    }
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.stats = tested.stats();
  return result;
}

/// `trace`: pairs of 64-bit numbers, slot and bytes, in the order of the calls; 2^64 - 1 bytes: a free.
nb::dict replay(const nb::bytes& trace, std::size_t slots, std::size_t limit, std::size_t chunk, double slack,
                std::size_t capacity, std::size_t granule) {
  if (trace.size() % sizeof(call) != 0) raise(PyExc_ValueError, "the trace is not made of pairs of 64-bit numbers");
  std::vector<call> calls(trace.size() / sizeof(call));
  std::memcpy(calls.data(), trace.data(), trace.size());
  for (const call& each : calls)
    if (each.slot >= slots) raise(PyExc_ValueError, "a slot is out of range");
  const options settings{.capacity = capacity,
                         .granule = granule,
                         .chunk = chunk,
                         .limit = limit,
                         .slack = slack,
                         .on_bad_free = on_bad_free::count};
  const outcome result = without_gil([&] { return run(calls, slots, settings); });
  nb::dict d;
  d["calls"] = calls.size();
  d["seconds"] = result.seconds;
  d["refused"] = result.refused;
  d["peak_requested"] = result.stats.peak_requested;
  d["peak_committed"] = result.stats.peak_committed;
  return d;
}

}  // namespace

void bind_replay(nb::module_& m) {
  m.def("_replay", replay, "trace"_a, "slots"_a, "limit"_a = 0, "chunk"_a = 0, "slack"_a = 0.2, "capacity"_a = 0,
        "granule"_a = 0);
}

}  // namespace orderly::python
