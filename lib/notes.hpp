/// \file
/// notes: what a pool remembers of single blocks, by the granule where they start: streams that must be done with a block
/// besides the one that frees it, and the graph whose replays use it.
///
/// A noted block has no home (block_word.hpp), so its free comes the slow way and looks here. The program orders whatever
/// notes a block before its free.
///
/// Graphs. What a stream gets while it takes part in a capture is used again by each replay of the captured graph. Such a
/// block is the graph's until the graph is gone with all that was made of it. Freed by the capture itself, it may serve
/// the same capture again, for the graph replays in the order of the stream; freed otherwise, it stays out of use.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "atomic.hpp"
#include "geometry.hpp"
#include "lane.hpp"

namespace orderly::detail {

/// The memory of one stream's part in one capture.
struct graph_memory {
  struct idle_block {
    std::uint32_t index;
    std::uint8_t sixteenths;
  };

  /// Set by whoever ends the graph, on any thread (release) -> notes::take_gone() (acquire): the last replay is done.
  atomic<bool> gone{false};
  std::uint64_t number = 0;  ///< of the capture, where the pool watches; 0: not known. Guarded by the pass mutex
  // Guarded by the notes' mutex.
  bool open = true;   ///< the capture goes on, as far as the pool knows
  bool tied = false;  ///< somebody will set `gone`
  bool used = false;  ///< blocks were handed out
  bool over = false;  ///< `gone` was seen
  std::array<std::vector<idle_block>, max_orders> idle;  ///< by order: freed by the capture
};

struct note {
  std::vector<lane*> streams;  ///< that must be done with the block, the last one first
  graph_memory* graph = nullptr;
  lane* freed_in = nullptr;  ///< of a graph's block; null: it is live
  node at;
  std::uint8_t sixteenths = 0;
};

/// All under one mutex, off the hot path. A map of nodes: taking out and putting back never fails.
struct notes {
  detail::mutex mutex;
  std::map<std::uint64_t, note> by_granule;
  std::vector<std::shared_ptr<graph_memory>> graphs;
  atomic<std::size_t> count{0};  ///< a figure: blocks that are noted. Who frees one has seen it counted

  /// Pre: mutex. After each change of the map.
  void recount() noexcept { count.store(by_granule.size(), relaxed); }

  /// Takes out what was freed of graphs that are gone; what is live of them is a block like others from now on.
  [[nodiscard]] std::map<std::uint64_t, note> take_gone() noexcept {
    std::map<std::uint64_t, note> freed;
    const std::lock_guard lock(mutex);
    bool any = false;
    for (const auto& each : graphs) {
      if (!each->gone.load(acquire)) continue;  // see there
      each->over = any = true;
      for (auto& idle : each->idle) idle.clear();  // they are taken out below
    }
    if (!any) return freed;
    for (auto at = by_granule.begin(); at != by_granule.end();) {
      note& n = at->second;
      const auto next = std::next(at);
      if (n.graph != nullptr && n.graph->over) {
        n.graph = nullptr;
        if (n.freed_in != nullptr)
          freed.insert(by_granule.extract(at));
        else if (n.streams.empty())
          by_granule.erase(at);
      }
      at = next;
    }
    std::erase_if(graphs, [](const auto& each) { return each->over && !each->open; });
    recount();
    return freed;
  }
};

}  // namespace orderly::detail
