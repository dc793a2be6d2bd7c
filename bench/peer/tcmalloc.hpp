/// \file
/// tcmalloc of gperftools.
#pragma once

#include <cstddef>
#include <string_view>

#include "peer/loaded_library.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class tcmalloc_peer {
 public:
  static constexpr std::string_view name = "tcmalloc";
  static constexpr bool arena = false;

  [[nodiscard]] static bool available() { return library().available(); }
  explicit tcmalloc_peer(const arena_config&) noexcept {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return allocate_(bytes); }
  void deallocate(void* pointer, std::size_t bytes) noexcept { deallocate_(pointer, bytes); }

 private:
  static const loaded_library& library() {
    static const loaded_library loaded(name, "libtcmalloc_minimal.so.4", {"tc_malloc", "tc_free_sized"});
    return loaded;
  }

  void* (*allocate_)(std::size_t) = library().function<void*(std::size_t)>("tc_malloc");
  void (*deallocate_)(void*, std::size_t) = library().function<void(void*, std::size_t)>("tc_free_sized");
};

}  // namespace orderly::bench
