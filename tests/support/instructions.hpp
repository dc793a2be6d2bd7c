/// \file
/// The instructions of this program by function, as objdump shows them, and which of them were hit.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <link.h>
#include <unistd.h>

namespace orderly::test {

class instructions {
 public:
  struct function {
    std::size_t count = 0;            ///< of its instructions
    std::set<std::uintptr_t> hit;     ///< addresses of those that were hit
    std::size_t hits = 0;
  };

  /// Empty where there is no objdump.
  instructions() {
    struct close_pipe {
      void operator()(std::FILE* pipe) const noexcept { pclose(pipe); }
    };
    const std::string self = std::to_string(getpid());
    const std::unique_ptr<std::FILE, close_pipe> dump(
        popen(("objdump -d -C --no-show-raw-insn /proc/" + self + "/exe 2>/dev/null").c_str(), "r"));
    if (dump == nullptr) return;
    std::string name;
    char line[8192];
    while (std::fgets(line, sizeof line, dump.get()) != nullptr) {
      char* end = nullptr;
      const std::uintptr_t address = std::strtoull(line, &end, 16);
      const std::string rest = end;
      if (rest.starts_with(" <")) {  // "0000000000001234 <name>:"
        name = rest.substr(2, rest.rfind(">:") - 2);
        for (const char* part : {" [clone .cold]", " [clone .part.0]", " [clone .isra.0]"})
          if (const auto at = name.find(part); at != std::string::npos) name.erase(at);
      } else if (end != line && rest.starts_with(":\t")) {  // "    1234:\tmov ..."; padding is never executed
        const bool padding = rest.find("\tnop") == 1 || rest.find("\tcs nop") == 1 || rest.find("\tdata16") == 1 ||
                             rest.find("\txchg   %ax,%ax") == 1;
        if (padding) continue;
        at_[address] = name;
        ++functions_[name].count;
      }
    }
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* base) {
          *static_cast<std::uintptr_t*>(base) = info->dlpi_addr;
          return 1;  // the first is the program
        },
        &base_);
  }

  [[nodiscard]] bool known() const noexcept { return !at_.empty(); }

  /// Null: outside of the program, in a system call or another library.
  function* hit(std::uintptr_t instruction) {
    const auto at = at_.find(instruction - base_);
    if (at == at_.end()) return nullptr;
    function& in = functions_[at->second];
    in.hit.insert(at->first);
    ++in.hits;
    return &in;
  }

  [[nodiscard]] std::string name(std::uintptr_t instruction) const {
    const auto at = at_.find(instruction - base_);
    return at == at_.end() ? "outside of the program" : at->second;
  }

  [[nodiscard]] const std::map<std::string, function>& functions() const noexcept { return functions_; }

 private:
  std::uintptr_t base_ = 0;
  std::map<std::uintptr_t, std::string> at_;
  std::map<std::string, function> functions_;
};

}  // namespace orderly::test
