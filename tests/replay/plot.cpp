// Pictures: bench/replay/plot.hpp.
#include "plot.hpp"

#include <cairo.h>
#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>

#include "temporary_folder.hpp"

using namespace orderly::bench;
using orderly::test::temporary_folder;

namespace {

picture small_picture() {
  picture made;
  made.title = "a trace";
  made.subtitle = "and what it is";
  made.events = 100;
  made.interval = 10;
  made.live = {1000, 2000, 3000, 4000, 5000, 5000, 4000, 3000, 2000, 1000};
  made.curves = {{"first", {5000, 6000, 6000, 6000, 6000, 6000, 6000, 6000, 6000, 6000}},
                 {"second", {9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000}}};
  made.map_name = "first";
  made.blocks = {{0x1000, 1000, 0, 100}, {0x7f0000000000, 4000, 10, 60}, {0x7f0000001000, 17, 60, 61}};
  return made;
}

std::string contents(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The size of a PNG in pixels, and how many colours it has.
struct image_facts {
  int width = 0;
  int height = 0;
  std::size_t colours = 0;
};

image_facts read_png(const std::filesystem::path& file) {
  const std::unique_ptr<cairo_surface_t, void (*)(cairo_surface_t*)> image(
      cairo_image_surface_create_from_png(file.c_str()), cairo_surface_destroy);
  REQUIRE(cairo_surface_status(image.get()) == CAIRO_STATUS_SUCCESS);
  image_facts facts{cairo_image_surface_get_width(image.get()), cairo_image_surface_get_height(image.get()), 0};
  const unsigned char* const pixels = cairo_image_surface_get_data(image.get());
  const auto bytes =
      static_cast<std::size_t>(cairo_image_surface_get_stride(image.get())) * static_cast<std::size_t>(facts.height);
  std::set<std::uint32_t> colours;
  for (std::size_t i = 0; i < bytes; i += 4)
    colours.insert(static_cast<std::uint32_t>(pixels[i] | pixels[i + 1] << 8 | pixels[i + 2] << 16));
  facts.colours = colours.size();
  return facts;
}

}  // namespace

TEST_CASE("names of pictures") {
  CHECK(is_plot_name("a.png"));
  CHECK(is_plot_name("b/a.svg"));
  CHECK_FALSE(is_plot_name("a.jpg"));
  CHECK_FALSE(is_plot_name("png"));
}

TEST_CASE("a PNG has a row for each trace") {
  const temporary_folder folder;
  const std::vector<picture> two{small_picture(), small_picture()};
  draw(folder.path("one.png"), std::span(two).first(1));
  draw(folder.path("two.png"), two);
  const image_facts one = read_png(folder.path("one.png"));
  const image_facts both = read_png(folder.path("two.png"));
  CHECK(one.width == both.width);
  CHECK(one.height * 2 == both.height);
  CHECK(one.colours > 50);
}

TEST_CASE("an SVG has the panels") {
  const temporary_folder folder;
  const std::vector<picture> one{small_picture()};
  draw(folder.path("one.svg"), one);
  const std::string text = contents(folder.path("one.svg"));
  CHECK(text.find("<svg") != std::string::npos);
  CHECK(text.find("<image") != std::string::npos);
  CHECK(text.find("</svg>") != std::string::npos);
}

TEST_CASE("pictures with little or nothing to show") {
  const temporary_folder folder;
  picture without_map = small_picture();
  without_map.blocks.clear();
  picture without_curves = small_picture();
  without_curves.curves.clear();
  const std::vector<picture> several{without_map, without_curves, picture{}};
  draw(folder.path("several.png"), several);
  CHECK(read_png(folder.path("several.png")).colours > 50);
}

TEST_CASE("a picture that cannot be written") {
  const std::vector<picture> one{small_picture()};
  for (const char* file : {"/nonexistent/a.png", "/nonexistent/a.svg"})
    CHECK_THROWS_AS(draw(file, one), std::runtime_error);
}
