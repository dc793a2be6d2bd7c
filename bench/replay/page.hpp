/// \file
/// A page that shows the document of state.hpp: memory over time, and the map of addresses at any event.
#pragma once

#include <string>

namespace orderly::bench {

/// The page as HTML: page.html, page.css and page.js with the document inside, compressed. It needs no other file, and
/// no network.
[[nodiscard]] std::string page_with(const std::string& document);

}  // namespace orderly::bench
