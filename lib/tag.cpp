#include "orderly/tag.hpp"

#include <utility>

#include "tag_names.hpp"

namespace orderly {

using namespace detail;

namespace detail {

constinit tag_names all_tag_names;
thread_local constinit std::uint16_t this_thread_tag = 0;

}  // namespace detail

tag::tag(std::string_view name) noexcept : number_(all_tag_names.number_of(name)) {}

const char* tag::name() const noexcept { return all_tag_names.name_of(number_); }

tag tag::of_number(std::uint16_t number) noexcept {
  tag t;
  if (number < all_tag_names.count()) t.number_ = number;
  return t;
}

tag tag::current() noexcept { return of_number(this_thread_tag); }

tag tag::exchange(tag next) noexcept {
  tag before;
  before.number_ = std::exchange(this_thread_tag, next.number_);
  return before;
}

}  // namespace orderly
