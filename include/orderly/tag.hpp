/// \file
/// Tags: what memory is for. A thread sets one, and blocks that it allocates meanwhile bear it, until they are freed,
/// wherever that is. A pool that is asked to (options::account_tags) counts what each tag holds.
///
///   static const orderly::tag activations("activations");
///   {
///     const orderly::tag_scope scope(activations);
///     block = pool.allocate(bytes);  // activations, and so is what is called from here
///   }
#pragma once

#include <cstdint>
#include <string_view>

#include "orderly/export.h"

namespace orderly {

/// A name that the process has registered, for ever: two tags of one name are equal. A program has a fixed set of them;
/// to register a name for each request, say, is not what they are for.
///
/// Thread safety: any. Progress: lock-free. Registering a name takes memory once, comparing and copying a tag nothing.
class ORDERLY_API tag {
 public:
  /// What blocks bear that were allocated outside of every scope: "untagged".
  constexpr tag() noexcept = default;

  /// The tag of that name. Empty: the same as above. Of a name the first 255 bytes count. Past 65,534 names, or without
  /// memory for one, what is new is "other", a tag like any.
  explicit tag(std::string_view name) noexcept;

  /// Ends with a zero byte, and stays for ever.
  [[nodiscard]] const char* name() const noexcept;

  /// 0: untagged. 1: other. No other tag of the process has it; another process may give it another name.
  [[nodiscard]] constexpr std::uint16_t number() const noexcept { return number_; }

  /// The tag with that number; untagged if there is none.
  [[nodiscard]] static tag of_number(std::uint16_t number) noexcept;

  /// Of this thread: what it has now, and the one to have from now on, which returns the one before.
  [[nodiscard]] static tag current() noexcept;
  static tag exchange(tag next) noexcept;

  [[nodiscard]] friend constexpr bool operator==(tag a, tag b) noexcept { return a.number_ == b.number_; }
  [[nodiscard]] friend constexpr bool operator!=(tag a, tag b) noexcept { return a.number_ != b.number_; }

 private:
  std::uint16_t number_ = 0;
};

/// The thread's tag from here to the end of the scope; then what it was before. Scopes nest, and end on the thread that
/// began them, the innermost first.
class tag_scope {
 public:
  explicit tag_scope(tag inside) noexcept : before_(tag::exchange(inside)) {}
  /// Looks the name up.
  explicit tag_scope(std::string_view name) noexcept : tag_scope(tag(name)) {}
  tag_scope(const tag_scope&) = delete;
  tag_scope& operator=(const tag_scope&) = delete;
  ~tag_scope() { tag::exchange(before_); }

 private:
  tag before_;
};

}  // namespace orderly
