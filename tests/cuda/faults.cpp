#include "faults.hpp"

#include <array>
#include <atomic>

#include "orderly/cuda.hpp"

namespace orderly::test {
namespace {

fault plan;
std::uint64_t count = 0;
std::uint64_t calls_before = 0;
const char* failed = nullptr;
std::array<std::atomic<std::size_t>, 7> things{};

std::atomic<std::size_t>& of(cuda_thing kind) { return things[static_cast<std::size_t>(kind)]; }

}  // namespace

void set_fault(const fault& planned) noexcept {
  plan = planned;
  count = 0;
  calls_before = cuda_calls();
  failed = nullptr;
  while (cudaGetLastError() != cudaSuccess) {
  }
}

const char* failed_function() noexcept { return failed; }

bool fault_lasts() noexcept { return plan.lasting && failed != nullptr; }

cudaError_t fault_of(const char* function) noexcept {
  if (plan.at == 0 || cuda_calls() == calls_before) return cudaSuccess;
  calls_before = cuda_calls();
  ++count;
  if (count != plan.at && !(plan.lasting && count > plan.at)) return cudaSuccess;
  if (failed == nullptr) failed = function;
  return plan.error;
}

void count_made(cuda_thing kind) noexcept { ++of(kind); }
void count_gone(cuda_thing kind) noexcept { --of(kind); }
std::size_t things_left(cuda_thing kind) noexcept { return of(kind); }

const char* to_string(cuda_thing kind) noexcept {
  switch (kind) {
    case cuda_thing::block: return "blocks";
    case cuda_thing::event: return "events";
    case cuda_thing::graph_object: return "objects of graphs";
    case cuda_thing::mapping: return "mappings";
    case cuda_thing::piece: return "pieces of physical memory";
    case cuda_thing::range: return "ranges of addresses";
    case cuda_thing::stream: return "streams";
  }
  return "";
}

}  // namespace orderly::test
