#include "peer/peers.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "peer/watched.hpp"

namespace orderly::bench {
namespace {

/// A peer's type behind the interface for code that chooses at run time.
template <static_peer Peer>
class adapter final : public any_peer {
 public:
  explicit adapter(const arena_config& config) : peer_(config) {}

  void* allocate(std::size_t bytes) noexcept override { return peer_.allocate(bytes); }

  bool deallocate(void* pointer, std::size_t bytes) noexcept override {
    if constexpr (requires { peer_.try_deallocate(pointer, bytes); }) {
      return peer_.try_deallocate(pointer, bytes);
    } else {
      peer_.deallocate(pointer, bytes);
      return true;
    }
  }

  void* allocate_in(std::size_t stream, std::size_t bytes) noexcept override {
    if constexpr (requires { peer_.allocate_in(stream, bytes); }) {
      return peer_.allocate_in(stream, bytes);
    } else {
      return peer_.allocate(bytes);
    }
  }

  [[nodiscard]] std::size_t committed() const noexcept override {
    if constexpr (requires { peer_.committed(); }) return peer_.committed();
    return 0;
  }

  [[nodiscard]] std::size_t peak_committed() const noexcept override {
    if constexpr (requires { peer_.peak_committed(); }) return peer_.peak_committed();
    return 0;
  }

  [[nodiscard]] std::optional<memory_moves> moved() const noexcept override {
    if constexpr (requires { peer_.moved(); }) return peer_.moved();
    return std::nullopt;
  }

  [[nodiscard]] const pool_view* inside() const noexcept override { return view_.get(); }

 private:
  [[nodiscard]] static std::unique_ptr<pool_view> look_into(const Peer& peer) {
    if constexpr (requires { peer.memory(); }) return std::make_unique<view_of<pool>>(peer.memory());
    return nullptr;
  }

  Peer peer_;
  std::unique_ptr<pool_view> view_ = look_into(peer_);
};

template <static_peer Peer>
std::unique_ptr<any_peer> make(const arena_config& config) {
  if (!is_available<Peer>()) return nullptr;
  return std::make_unique<adapter<Peer>>(config);
}

template <static_peer Peer>
void add(std::vector<peer_entry>& entries) {
  if constexpr (!is_one_size<Peer>()) entries.push_back({Peer::name, Peer::arena, &make<Peer>});
}

template <static_peer... Peers>
std::vector<peer_entry> entries_of(peer_list<Peers...>) {
  std::vector<peer_entry> entries;
  (add<Peers>(entries), ...);
  return entries;
}

}  // namespace

std::span<const peer_entry> peers() noexcept {
  static const std::vector<peer_entry> entries = entries_of(all_peers{});
  return entries;
}

const peer_entry* find_peer(std::string_view name) noexcept {
  for (const std::span<const peer_entry> list : {peers(), stream_peers()}) {
    const auto found = std::ranges::find(list, name, &peer_entry::name);
    if (found != list.end()) return &*found;
  }
  return nullptr;
}

}  // namespace orderly::bench
