#include "history.hpp"

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace orderly::bench {

void range_log::note(std::uint64_t address, std::uint64_t bytes, std::uint64_t from, std::uint64_t to) {
  if (from < to) closed_.push_back({address, bytes, from, to});
}

range_log::position range_log::close(position range, std::uint64_t at) {
  note(range->first, range->second.bytes, range->second.from, at);
  return open_.erase(range);
}

void range_log::close(std::uint64_t address, std::uint64_t bytes, std::uint64_t at) {
  const std::uint64_t end = address + bytes;
  auto next = open_.upper_bound(address);
  if (next != open_.begin()) --next;
  while (next != open_.end() && next->first < end) {
    const auto [begin, range] = *next;
    const std::uint64_t range_end = begin + range.bytes;
    if (range_end <= address) {
      ++next;
      continue;
    }
    next = open_.erase(next);
    if (begin < address) open_[begin] = {address - begin, range.from};
    if (end < range_end) open_[end] = {range_end - end, range.from};
    const std::uint64_t closed_begin = std::max(begin, address);
    note(closed_begin, std::min(end, range_end) - closed_begin, range.from, at);
  }
}

bool range_log::close_exactly(std::uint64_t address, std::uint64_t bytes, std::uint64_t at) {
  const auto found = open_.find(address);
  if (found == open_.end() || found->second.bytes != bytes) return false;
  close(found, at);
  return true;
}

void range_log::replace(std::span<const std::pair<std::uint64_t, std::uint64_t>> now, std::uint64_t at) {
  auto known = open_.begin();
  for (const auto& [address, bytes] : now) {
    while (known != open_.end() && known->first < address) known = close(known, at);
    if (known != open_.end() && known->first == address) {
      if (known->second.bytes == bytes) {
        ++known;
        continue;
      }
      known = close(known, at);
    }
    open_.emplace_hint(known, address, opened{bytes, at});
  }
  while (known != open_.end()) known = close(known, at);
}

std::vector<memory_range> range_log::finish(std::uint64_t events) && {
  for (const auto& [address, range] : open_) note(address, range.bytes, range.from, events);
  open_.clear();
  std::ranges::stable_sort(closed_, {}, &memory_range::from);
  return std::move(closed_);
}

history_recorder::history_recorder(const replay_plan& plan, std::size_t interval)
    : events_(plan.events), lengths_(plan.blocks) {
  result_.interval = interval;
  result_.live.resize(plan.blocks);
}

void history_recorder::committed(const void* address, std::size_t bytes) noexcept {
  committed_.open(reinterpret_cast<std::uintptr_t>(address), bytes, now_);
}

void history_recorder::decommitted(const void* address, std::size_t bytes) noexcept {
  committed_.close(reinterpret_cast<std::uintptr_t>(address), bytes, now_);
}

void history_recorder::after(std::uint64_t position, const event& call, const void* block, const any_peer& peer) {
  const pool_view& pool = *peer.inside();
  const auto address = reinterpret_cast<std::uintptr_t>(block);
  const statistics now = pool.stats();
  // Most calls are served by a cache, which moves one block and nothing else. After any other all blocks are looked
  // at.
  bool known = false;
  if (call.what == action::allocate && block != nullptr) {
    const std::size_t length = pool.block_size(block);
    lengths_[call.block] = length;
    result_.live[call.block].address = address;
    result_.live[call.block].bytes = length;
    known = now.cached + length == cached_bytes_ && cached_.close_exactly(address, length, position);
  } else if (call.what == action::free && block != nullptr) {
    const std::size_t length = std::exchange(lengths_[call.block], 0);
    known = now.cached == cached_bytes_ + length;
    if (known) cached_.open(address, length, position);
  } else {
    known = now.cached == cached_bytes_;
  }
  if (!known) note_cached(pool);
  cached_bytes_ = now.cached;
  if (position == 0) result_.granule = pool.granule();
  if ((position + 1) % result_.interval == 0 || position + 1 == events_) result_.samples.push_back(now);
  now_ = position + 1;
}

void history_recorder::note_cached(const pool_view& pool) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> found;
  pool.each_block([&found](const block_info& block) {
    if (block.state == block_state::cached)
      found.emplace_back(reinterpret_cast<std::uintptr_t>(block.address), block.bytes);
  });
  cached_.replace(found, now_);
}

memory_history history_recorder::finish() && {
  result_.cached = std::move(cached_).finish(events_);
  result_.committed = std::move(committed_).finish(events_);
  return std::move(result_);
}

void complete(memory_history& recorded, const trace& replayed, const replay_plan& plan) {
  for (std::uint64_t i = 0; i < replayed.events.size(); ++i) {
    const event& call = replayed.events[i];
    live_range& block = recorded.live[call.block];
    if (call.what == action::allocate) {
      block.from = i;
      block.to = replayed.events.size();
      block.requested = call.bytes;
      block.thread = block.freed_by = call.thread;
      block.lane = plan.stream_of[call.block];
      if (!replayed.tag_of.empty()) block.tag = replayed.tag_of[call.block];
      if (block.address == 0) recorded.refused.push_back({i, call.bytes, call.thread});
    } else {
      block.to = i;
      block.freed_by = call.thread;
    }
  }
  recorded.tags = replayed.tags;
  std::erase_if(recorded.live, [](const live_range& block) { return block.address == 0; });
}

namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("the temporary file for the history of a pool cannot be " + what);
}

template <class T>
  requires std::is_trivially_copyable_v<T>
void put(std::FILE* file, const std::vector<T>& values) {
  const std::size_t count = values.size();
  if (std::fwrite(&count, sizeof count, 1, file) != 1 || std::fwrite(values.data(), sizeof(T), count, file) != count)
    fail("written");
}

template <class T>
  requires std::is_trivially_copyable_v<T>
void get(std::FILE* file, std::vector<T>& values) {
  std::size_t count = 0;
  bool whole = std::fread(&count, sizeof count, 1, file) == 1;
  if (whole) values.resize(count);
  whole = whole && std::fread(values.data(), sizeof(T), count, file) == count;
  if (!whole) fail("read");
}

}  // namespace

handed_over::handed_over() : file_(std::tmpfile()) {
  if (file_ == nullptr) throw std::runtime_error("no temporary file for the history of a pool");
}

void handed_over::write(const memory_history& recorded) {
  put(file_, std::vector<std::uint64_t>{recorded.granule, recorded.interval});
  put(file_, recorded.live);
  put(file_, recorded.cached);
  put(file_, recorded.committed);
  put(file_, recorded.samples);
  if (std::fflush(file_) != 0) fail("written");
}

memory_history handed_over::read() {
  memory_history recorded;
  std::vector<std::uint64_t> numbers;
  std::rewind(file_);
  get(file_, numbers);
  recorded.granule = numbers.at(0);
  recorded.interval = numbers.at(1);
  get(file_, recorded.live);
  get(file_, recorded.cached);
  get(file_, recorded.committed);
  get(file_, recorded.samples);
  return recorded;
}

}  // namespace orderly::bench
