/// \file
/// What a peer's type offers to the benchmarks, which are templates over it.
#pragma once

#include <concepts>
#include <cstddef>
#include <string_view>

#include "peer/peer.hpp"

namespace orderly::bench {

/// Both calls are thread-safe. allocate returns null when it refuses. deallocate gets the bytes given to allocate.
///
/// Optional members, each recognised by its presence:
///   static bool available()              false, with a line on stderr: this machine does not have it
///   bool try_deallocate(pointer, bytes)  checks the free; false: a bad one
///   void* allocate_in(stream, bytes)     keeps the memory of streams apart; allocate is for stream 0
///   size_t committed(), peak_committed() as in any_peer
///   optional<memory_moves> moved()       as in any_peer
///   size_t rounded(bytes)                length of the block that a request gets
///   one_size                             true: serves blocks of one size, so few workloads and no replay
template <class Peer>
concept static_peer = std::constructible_from<Peer, const arena_config&> &&
                      requires(Peer& peer, void* pointer, std::size_t bytes) {
                        { Peer::name } -> std::convertible_to<std::string_view>;
                        { Peer::arena } -> std::convertible_to<bool>;
                        { peer.allocate(bytes) } noexcept -> std::same_as<void*>;
                        { peer.deallocate(pointer, bytes) } noexcept -> std::same_as<void>;
                      };

template <static_peer Peer>
[[nodiscard]] bool is_available() {
  if constexpr (requires { Peer::available(); }) {
    return Peer::available();
  } else {
    return true;
  }
}

template <static_peer Peer>
[[nodiscard]] consteval bool is_one_size() {
  if constexpr (requires { Peer::one_size; }) {
    return Peer::one_size;
  } else {
    return false;
  }
}

}  // namespace orderly::bench
