#include "replay.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <thread>

#include "clock.hpp"

namespace orderly::bench {

namespace {

constexpr std::size_t cache_line = 64;
constexpr std::size_t page = 4096;

/// Stands in a block's slot when its allocation was refused: there is nothing to free.
char refusal;
void* const refused = &refusal;

/// Waits in a loop: short waits spin, long ones leave the processor to the thread that is waited for.
class patience {
 public:
  void wait() noexcept {
    if (spins_ == 0) {
      std::this_thread::yield();
      return;
    }
    --spins_;
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 private:
  int spins_ = 128;
};

/// One instance of the trace.
struct instance {
  explicit instance(std::size_t blocks) : pointers(blocks) {}

  std::vector<std::atomic<void*>> pointers;  ///< by block; null: not allocated yet, or freed
  alignas(cache_line) std::atomic<std::uint64_t> turn{0};  ///< position in the trace of the event whose turn it is
};

/// What all threads of a replay share.
struct shared_state {
  enum class gate : int { closed, open, cancelled };

  any_peer& peer;
  const replay_settings& settings;
  observation* seen;
  alignas(cache_line) std::atomic<gate> start{gate::closed};
  alignas(cache_line) std::atomic<bool> stopped{false};
  alignas(cache_line) std::atomic<std::uint64_t> live{0};
};

class alignas(cache_line) worker {
 public:
  /// The threads of the copy have streams from `first_stream` on.
  worker(shared_state& shared, instance& copy, const replay_plan& whole, std::size_t thread, std::size_t first_stream)
      : shared_(shared), copy_(copy), plan_(whole.threads[thread]), stream_of_(whole.stream_of), events_(whole.events),
        first_stream_(first_stream) {
    const auto frees = static_cast<std::size_t>(
        std::count_if(plan_.events.begin(), plan_.events.end(), [](const event& e) { return e.what == action::free; }));
    free_ticks_.reserve(frees);
    allocate_ticks_.reserve(plan_.events.size() - frees);
  }

  void run() {
    shared_.start.wait(shared_state::gate::closed);
    if (shared_.start.load(std::memory_order::acquire) == shared_state::gate::cancelled) return;
    const bool ordered = shared_.settings.order == replay_order::recorded;
    const event* next = plan_.events.data();
    for (const replay_plan::turn& turn : plan_.turns) {
      if (ordered && !await([&] { return copy_.turn.load(std::memory_order::acquire) == turn.first; })) return;
      for (std::uint64_t i = 0; i < turn.count; ++i) {
        const event& call = *next++;
        if (!execute(call)) return;
        if (shared_.seen != nullptr) observe(turn.first + i, call);
      }
      if (ordered) copy_.turn.store(turn.first + turn.count, std::memory_order::release);
    }
    // A thread that ends gives back what it has cached, and whoever looks in the meantime would see it half done.
    if (ordered && shared_.seen != nullptr)
      await([&] { return copy_.turn.load(std::memory_order::acquire) == events_; });
  }

  void add_to(replay_outcome& total) const {
    total.allocate_ticks.insert(total.allocate_ticks.end(), allocate_ticks_.begin(), allocate_ticks_.end());
    total.free_ticks.insert(total.free_ticks.end(), free_ticks_.begin(), free_ticks_.end());
    total.failures += failures_;
    total.refused_frees += refused_frees_;
    total.peak_live_bytes = std::max(total.peak_live_bytes, peak_live_);
  }

 private:
  /// False: the replay was stopped.
  template <class Condition>
  bool await(Condition reached) {
    for (patience waiting; !reached(); waiting.wait()) {
      if (shared_.stopped.load(std::memory_order::relaxed)) return false;
    }
    return true;
  }

  bool execute(const event& call) { return call.what == action::allocate ? allocate(call) : free(call); }

  bool allocate(const event& call) {
    const std::size_t stream = first_stream_ + stream_of_[call.block];
    const std::uint64_t begin = section_begin();
    void* const pointer = shared_.peer.allocate_in(stream, call.bytes);
    const std::uint64_t end = section_end();
    allocate_ticks_.push_back(end - begin);
    if (pointer == nullptr) return refuse(call);
    const std::uint64_t live = shared_.live.fetch_add(call.bytes, std::memory_order::relaxed) + call.bytes;
    peak_live_ = std::max(peak_live_, live);
    if (shared_.settings.touch) touch(pointer, call.bytes);
    shared_.peer.use_in(stream, pointer);
    if (shared_.seen != nullptr) shared_.seen->addresses[call.block] = reinterpret_cast<std::uintptr_t>(pointer);
    copy_.pointers[call.block].store(pointer, std::memory_order::release);
    return true;
  }

  bool refuse(const event& call) {
    ++failures_;
    copy_.pointers[call.block].store(refused, std::memory_order::release);
    if (!shared_.settings.stop_at_refusal) return true;
    shared_.stopped.store(true, std::memory_order::relaxed);
    return false;
  }

  bool free(const event& call) {
    std::atomic<void*>& slot = copy_.pointers[call.block];
    void* pointer = nullptr;
    if (!await([&] { return (pointer = slot.load(std::memory_order::acquire)) != nullptr; })) return false;
    slot.store(nullptr, std::memory_order::relaxed);
    if (pointer == refused) return true;
    // Before the call: afterwards another thread may have the memory already, and it would count twice.
    shared_.live.fetch_sub(call.bytes, std::memory_order::relaxed);
    const std::size_t stream = first_stream_ + stream_of_[call.block];
    const std::uint64_t begin = section_begin();
    const bool good = shared_.peer.deallocate_in(stream, pointer, call.bytes);
    const std::uint64_t end = section_end();
    free_ticks_.push_back(end - begin);
    if (!good) ++refused_frees_;
    return true;
  }

  static void touch(void* pointer, std::uint64_t bytes) {
    auto* const memory = static_cast<volatile char*>(pointer);
    for (std::uint64_t offset = 0; offset < bytes; offset += page) memory[offset] = 1;
  }

  void observe(std::uint64_t position, const event& call) {
    if (shared_.seen->observer != nullptr) {
      const void* const block = reinterpret_cast<const void*>(shared_.seen->addresses[call.block]);
      shared_.seen->observer->after(position, call, block, shared_.peer);
    }
    std::uint64_t& sample = shared_.seen->committed[position / shared_.seen->interval];
    sample = std::max<std::uint64_t>(sample, shared_.peer.committed());
  }

  shared_state& shared_;
  instance& copy_;
  const replay_plan::thread& plan_;
  const std::vector<std::uint16_t>& stream_of_;
  std::uint64_t events_;  // of the trace
  std::size_t first_stream_;
  std::vector<std::uint64_t> allocate_ticks_;
  std::vector<std::uint64_t> free_ticks_;
  std::size_t failures_ = 0;
  std::size_t refused_frees_ = 0;
  std::uint64_t peak_live_ = 0;
};

void run_all(std::vector<worker>& workers, shared_state& shared) {
  std::vector<std::jthread> threads;
  const auto open = [&shared](shared_state::gate how) {
    shared.start.store(how, std::memory_order::release);
    shared.start.notify_all();
  };
  try {
    for (worker& each : workers) threads.emplace_back([&each] { each.run(); });
  } catch (...) {
    open(shared_state::gate::cancelled);
    throw;
  }
  open(shared_state::gate::open);
}

void free_rest(any_peer& peer, const replay_plan& plan, instance& copy, std::size_t first_stream) {
  for (const replay_plan::thread& thread : plan.threads) {
    for (const event& call : thread.events) {
      if (call.what != action::allocate) continue;
      void* const pointer = copy.pointers[call.block].load(std::memory_order::relaxed);
      if (pointer != nullptr && pointer != refused)
        static_cast<void>(peer.deallocate_in(first_stream + plan.stream_of[call.block], pointer, call.bytes));
    }
  }
}

/// For each thread of the trace the thread that replays it: the busiest first, each to the least loaded.
std::vector<std::size_t> assign_threads(const trace& recorded, std::size_t threads) {
  std::vector<std::size_t> events(recorded.threads);
  for (const event& call : recorded.events) ++events[call.thread];
  std::vector<std::size_t> busiest_first(recorded.threads);
  std::iota(busiest_first.begin(), busiest_first.end(), std::size_t{0});
  std::stable_sort(busiest_first.begin(), busiest_first.end(),
                   [&events](std::size_t a, std::size_t b) { return events[a] > events[b]; });
  std::vector<std::size_t> load(threads);
  std::vector<std::size_t> assigned(recorded.threads);
  for (const std::size_t thread : busiest_first) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += events[thread];
    assigned[thread] = static_cast<std::size_t>(least - load.begin());
  }
  return assigned;
}

}  // namespace

replay_plan plan_replay(const trace& recorded, std::size_t threads) {
  replay_plan plan;
  plan.blocks = recorded.blocks;
  plan.events = recorded.events.size();
  plan.threads.resize(std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(recorded.threads, 1)));
  const std::vector<std::size_t> assigned = assign_threads(recorded, plan.threads.size());
  plan.stream_of.resize(recorded.blocks);
  const replay_plan::thread* previous = nullptr;
  for (std::uint64_t position = 0; position < recorded.events.size(); ++position) {
    const event& call = recorded.events[position];
    replay_plan::thread& thread = plan.threads[assigned[call.thread]];
    if (call.what == action::allocate) plan.stream_of[call.block] = static_cast<std::uint16_t>(assigned[call.thread]);
    if (&thread != previous) thread.turns.push_back({position, 0});
    ++thread.turns.back().count;
    thread.events.push_back(call);
    previous = &thread;
  }
  return plan;
}

replay_outcome replay(any_peer& peer, const replay_plan& plan, const replay_settings& settings, observation* seen) {
  shared_state shared{peer, settings, seen};
  if (seen != nullptr) {
    seen->committed.assign((plan.events + seen->interval - 1) / seen->interval, 0);
    seen->addresses.assign(plan.blocks, 0);
  }
  std::vector<std::unique_ptr<instance>> copies;
  std::vector<worker> workers;
  for (std::size_t i = 0; i < settings.copies; ++i) {
    instance& copy = *copies.emplace_back(std::make_unique<instance>(plan.blocks));
    for (std::size_t thread = 0; thread < plan.threads.size(); ++thread)
      workers.emplace_back(shared, copy, plan, thread, i * plan.threads.size());
  }
  run_all(workers, shared);
  replay_outcome total;
  for (const worker& each : workers) each.add_to(total);
  total.peak_committed_bytes = peer.peak_committed();
  total.made = peer.made();
  total.moved = peer.moved();
  for (std::size_t i = 0; i < copies.size(); ++i) free_rest(peer, plan, *copies[i], i * plan.threads.size());
  return total;
}

}  // namespace orderly::bench
