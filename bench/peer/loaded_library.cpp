#include "peer/loaded_library.hpp"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "peer/peer.hpp"

namespace orderly::bench {
namespace {

bool is_from(void* address, void* handle) {
  link_map* library = nullptr;
  void* home = nullptr;
  Dl_info info;
  return dlinfo(handle, RTLD_DI_LINKMAP, &library) == 0 && dladdr1(address, &info, &home, RTLD_DL_LINKMAP) != 0 &&
         home == library;
}

}  // namespace

loaded_library::loaded_library(std::string_view peer, const char* file, std::initializer_list<const char*> functions)
    : handle_(dlopen(file, RTLD_NOW | RTLD_LOCAL)) {
  std::string problem = handle_ == nullptr ? dlerror() : "";
  for (const char* name : functions) {
    if (!problem.empty()) break;
    void* const address = symbol(name);
    if (address == nullptr || !is_from(address, handle_)) problem = std::string(file) + " has no function " + name;
  }
  available_ = problem.empty();
  if (available_) return;
  std::fprintf(stderr, "peer %.*s is left out: %s\n", static_cast<int>(peer.size()), peer.data(), problem.c_str());
}

void* loaded_library::symbol(const char* name) const noexcept {
  return handle_ == nullptr ? nullptr : dlsym(handle_, name);
}

void make_room_for_peers(char** argv) {
  constexpr const char* variable = "GLIBC_TUNABLES";
  const std::string tunable = "glibc.rtld.optional_static_tls";
  const char* const present = std::getenv(variable);
  std::string value = present != nullptr ? present : "";
  if (value.find(tunable) != std::string::npos) return;
  if (!value.empty()) value += ':';
  value += tunable + "=32768";
  setenv(variable, value.c_str(), 1);
  execv("/proc/self/exe", argv);
  std::perror("cannot restart with room for thread-local storage, so jemalloc may be left out");
}

}  // namespace orderly::bench
