#include "plot.hpp"

#include <cairo-svg.h>
#include <cairo.h>
#include <fontconfig/fontconfig.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>

namespace orderly::bench {

namespace {

struct colour {
  double red, green, blue;
};

struct rectangle {
  double left, top, width, height;

  [[nodiscard]] double right() const { return left + width; }
  [[nodiscard]] double bottom() const { return top + height; }
};

constexpr double page_width = 1600;
constexpr double row_height = 470;
constexpr rectangle memory_panel{92, 70, 600, 330};
constexpr double legend_left = 712;
constexpr rectangle map_panel{1000, 70, 480, 330};
constexpr rectangle size_scale{1502, 70, 14, 330};
constexpr double pixels_per_unit = 2;  // of a PNG and of the address map

constexpr colour ink{0.13, 0.15, 0.18};
constexpr colour faint{0.87, 0.88, 0.90};
constexpr colour muted{0.42, 0.45, 0.50};
constexpr colour live_fill{0.90, 0.91, 0.93};

/// For curves, the first of which is the one to look at.
constexpr std::array<colour, 10> curve_colours{{{0.05, 0.36, 0.78},
                                                {0.90, 0.42, 0.05},
                                                {0.13, 0.58, 0.32},
                                                {0.78, 0.14, 0.22},
                                                {0.50, 0.32, 0.70},
                                                {0.55, 0.36, 0.26},
                                                {0.87, 0.40, 0.68},
                                                {0.10, 0.62, 0.72},
                                                {0.65, 0.63, 0.10},
                                                {0.45, 0.47, 0.50}}};

/// From small blocks to large ones: even steps of lightness, legible without colour vision.
constexpr std::array<colour, 5> size_colours{
    {{0.98, 0.78, 0.28}, {0.95, 0.48, 0.30}, {0.76, 0.25, 0.46}, {0.44, 0.14, 0.52}, {0.13, 0.07, 0.33}}};

struct surface_release {
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
};
struct context_release {
  void operator()(cairo_t* context) const { cairo_destroy(context); }
};
using surface_handle = std::unique_ptr<cairo_surface_t, surface_release>;
using context_handle = std::unique_ptr<cairo_t, context_release>;

/// Cairo and fontconfig keep fonts until the program ends, and leak checkers take them for lost.
struct font_cache {
  font_cache() = default;
  font_cache(const font_cache&) = delete;
  font_cache& operator=(const font_cache&) = delete;
  ~font_cache() {
    cairo_debug_reset_static_data();
    FcFini();
  }
};

void use(cairo_t* c, const colour& paint) { cairo_set_source_rgb(c, paint.red, paint.green, paint.blue); }

/// `anchor`: 0 begins the text at x, 0.5 centres it there, 1 ends it there.
void write_text(cairo_t* c, double x, double y, const std::string& text, double anchor = 0, double size = 13,
                bool bold = false) {
  cairo_select_font_face(c, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                         bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
  cairo_set_font_size(c, size);
  cairo_text_extents_t extents;
  cairo_text_extents(c, text.c_str(), &extents);
  cairo_move_to(c, x - anchor * extents.x_advance, y);
  cairo_show_text(c, text.c_str());
}

void write_upwards(cairo_t* c, double x, double y, const std::string& text) {
  cairo_save(c);
  cairo_translate(c, x, y);
  cairo_rotate(c, -std::acos(0.0));
  write_text(c, 0, 0, text, 0.5);
  cairo_restore(c);
}

std::string decimal(double value, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

struct byte_unit {
  const char* name;
  double bytes;
};

byte_unit unit_for(double bytes) {
  constexpr std::array<byte_unit, 5> units{
      {{"TiB", 0x1p40}, {"GiB", 0x1p30}, {"MiB", 0x1p20}, {"KiB", 0x1p10}, {"B", 1}}};
  for (const byte_unit& unit : units) {
    if (bytes >= unit.bytes) return unit;
  }
  return units.back();
}

/// The distance between ticks, one of 1, 2 and 5 times a power of ten, that divides `range` into about `count`.
double tick_step(double range, double count) {
  const double rough = range / count;
  const double magnitude = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * magnitude >= rough) return factor * magnitude;
  }
  return 10 * magnitude;
}

/// One direction of a panel: values from 0 to `most`, shown in multiples of `unit`.
struct axis {
  double most = 1;
  double unit = 1;
  std::string label;
};

class panel {
 public:
  panel(cairo_t* c, const rectangle& area, axis x, axis y) : c_(c), area_(area), x_(std::move(x)), y_(std::move(y)) {}

  [[nodiscard]] double at_x(double value) const { return area_.left + area_.width * value / x_.most; }
  [[nodiscard]] double at_y(double value) const { return area_.bottom() - area_.height * value / y_.most; }

  void draw_axes() const {
    cairo_set_line_width(c_, 1);
    draw_ticks(x_, 6, [this](double value, const std::string& text) {
      line(at_x(value), area_.top, at_x(value), area_.bottom());
      use(c_, ink);
      write_text(c_, at_x(value), area_.bottom() + 20, text, 0.5);
    });
    draw_ticks(y_, 6, [this](double value, const std::string& text) {
      line(area_.left, at_y(value), area_.right(), at_y(value));
      use(c_, ink);
      write_text(c_, area_.left - 9, at_y(value) + 4.5, text, 1);
    });
    use(c_, ink);
    write_text(c_, area_.left + area_.width / 2, area_.bottom() + 42, x_.label, 0.5);
    write_upwards(c_, area_.left - 62, area_.top + area_.height / 2, y_.label);
  }

  void draw_frame() const {
    use(c_, muted);
    cairo_set_line_width(c_, 1);
    cairo_rectangle(c_, area_.left, area_.top, area_.width, area_.height);
    cairo_stroke(c_);
  }

  /// Steps through the samples; filled down to zero or not.
  void draw_series(const std::vector<std::uint64_t>& values, std::size_t interval, bool filled) const {
    if (values.empty()) return;
    cairo_new_path(c_);
    if (filled) cairo_move_to(c_, at_x(0), at_y(0));
    double right = at_x(0);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double y = at_y(static_cast<double>(values[i]));
      cairo_line_to(c_, right, y);
      right = at_x(std::min(x_.most, static_cast<double>((i + 1) * interval)));
      cairo_line_to(c_, right, y);
    }
    if (filled) {
      cairo_line_to(c_, right, at_y(0));
      cairo_fill(c_);
    } else {
      cairo_stroke(c_);
    }
  }

 private:
  template <class Tick>
  void draw_ticks(const axis& along, double count, Tick tick) const {
    const double range = along.most / along.unit;
    const double step = tick_step(range, count);
    const int digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step))));
    for (int i = 0; i * step <= range * 1.0001; ++i) tick(i * step * along.unit, decimal(i * step, digits));
  }

  void line(double from_x, double from_y, double to_x, double to_y) const {
    use(c_, faint);
    cairo_move_to(c_, from_x, from_y);
    cairo_line_to(c_, to_x, to_y);
    cairo_stroke(c_);
  }

  cairo_t* c_;
  rectangle area_;
  axis x_;
  axis y_;
};

axis event_axis(std::size_t events) {
  const auto most = static_cast<double>(std::max<std::size_t>(events, 1));
  if (most >= 10000) return {most, 1000, "progress of the trace (thousand events)"};
  return {most, 1, "progress of the trace (events)"};
}

axis byte_axis(double most, const std::string& what) {
  const byte_unit unit = unit_for(std::max(most, 1.0));
  return {std::max(most, 1.0), unit.bytes, what + " (" + unit.name + ")"};
}

std::uint64_t highest(const std::vector<std::uint64_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

void draw_legend_entry(cairo_t* c, double y, const std::string& name, const std::string& note) {
  cairo_move_to(c, legend_left, y - 4.5);
  cairo_line_to(c, legend_left + 22, y - 4.5);
  cairo_stroke(c);
  use(c, ink);
  write_text(c, legend_left + 30, y, name);
  write_text(c, legend_left + 190, y, note, 1);
}

void draw_memory(cairo_t* c, const picture& shown) {
  std::uint64_t most = highest(shown.live);
  for (const memory_curve& curve : shown.curves) most = std::max(most, highest(curve.committed));
  const panel area(c, memory_panel, event_axis(shown.events), byte_axis(1.06 * static_cast<double>(most), "memory"));
  use(c, live_fill);
  area.draw_series(shown.live, shown.interval, true);
  area.draw_axes();
  double y = memory_panel.top + 12;
  use(c, muted);
  write_text(c, legend_left + 190, y, "peak / peak live", 1, 11);
  y += 22;
  cairo_set_line_join(c, CAIRO_LINE_JOIN_ROUND);
  cairo_set_line_width(c, 1);
  use(c, muted);
  area.draw_series(shown.live, shown.interval, false);
  draw_legend_entry(c, y, "live bytes", "1.00");
  // The last drawn lies on top: the first curve.
  for (std::size_t i = shown.curves.size(); i-- > 0;) {
    use(c, curve_colours[i % curve_colours.size()]);
    cairo_set_line_width(c, i == 0 ? 2.2 : 1.3);
    area.draw_series(shown.curves[i].committed, shown.interval, false);
  }
  const auto live = static_cast<double>(std::max<std::uint64_t>(highest(shown.live), 1));
  for (std::size_t i = 0; i < shown.curves.size(); ++i) {
    y += 21;
    use(c, curve_colours[i % curve_colours.size()]);
    cairo_set_line_width(c, i == 0 ? 2.6 : 1.6);
    draw_legend_entry(c, y, shown.curves[i].name,
                      decimal(static_cast<double>(highest(shown.curves[i].committed)) / live, 2));
  }
  area.draw_frame();
}

/// Places addresses on an axis that leaves out what no block ever used.
class used_addresses {
 public:
  explicit used_addresses(std::vector<drawn_block> blocks) {
    std::sort(blocks.begin(), blocks.end(),
              [](const drawn_block& a, const drawn_block& b) { return a.address < b.address; });
    for (const drawn_block& block : blocks) {
      const std::uint64_t end = block.address + block.bytes;
      if (!ranges_.empty() && block.address <= ranges_.back().end + largest_gap) {
        ranges_.back().end = std::max(ranges_.back().end, end);
      } else {
        ranges_.push_back({block.address, end, total()});
      }
    }
  }

  [[nodiscard]] std::uint64_t total() const {
    return ranges_.empty() ? 0 : ranges_.back().offset + (ranges_.back().end - ranges_.back().begin);
  }

  [[nodiscard]] std::uint64_t offset(std::uint64_t address) const {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                        [](std::uint64_t value, const range& each) { return value < each.begin; });
    return std::prev(after)->offset + (address - std::prev(after)->begin);
  }

 private:
  static constexpr std::uint64_t largest_gap = 4096;

  struct range {
    std::uint64_t begin, end;
    std::uint64_t offset;
  };
  std::vector<range> ranges_;
};

/// The colour of a block at `position` between the smallest (0) and the largest (1) of the trace.
colour size_colour(double position) {
  const double scaled = std::clamp(position, 0.0, 1.0) * (size_colours.size() - 1);
  const auto low = std::min(static_cast<std::size_t>(scaled), size_colours.size() - 2);
  const double part = scaled - static_cast<double>(low);
  const auto mix = [part](double a, double b) { return a + (b - a) * part; };
  const colour& a = size_colours[low];
  const colour& b = size_colours[low + 1];
  return {mix(a.red, b.red), mix(a.green, b.green), mix(a.blue, b.blue)};
}

/// Logarithms of the sizes at the two ends of the colours.
struct size_range {
  double low = 0;
  double high = 1;
  bool clipped = false;  ///< smaller blocks than `low` exist, and share its colour

  [[nodiscard]] double position(std::uint64_t bytes) const {
    return (std::log2(static_cast<double>(bytes)) - low) / (high - low);
  }
};

size_range sizes_of(const std::vector<drawn_block>& blocks) {
  const auto [smallest, largest] = std::minmax_element(
      blocks.begin(), blocks.end(), [](const drawn_block& a, const drawn_block& b) { return a.bytes < b.bytes; });
  // Smaller blocks are hardly visible: most colours go to the sizes that fill the map.
  constexpr double widest = 12;
  const double high = std::max(1.0, std::ceil(std::log2(static_cast<double>(largest->bytes))));
  const double low = std::min(high - 1, std::floor(std::log2(static_cast<double>(smallest->bytes))));
  return {std::max(low, high - widest), high, low < high - widest};
}

void draw_size_scale(cairo_t* c, const size_range& sizes) {
  for (double y = 0; y < size_scale.height; ++y) {
    use(c, size_colour(1 - y / size_scale.height));
    cairo_rectangle(c, size_scale.left, size_scale.top + y, size_scale.width, std::min(1.5, size_scale.height - y));
    cairo_fill(c);
  }
  use(c, ink);
  const double step = std::max(1.0, std::round((sizes.high - sizes.low) / 6));
  for (double exponent = sizes.low; exponent <= sizes.high; exponent += step) {
    const double y = size_scale.bottom() - size_scale.height * (exponent - sizes.low) / (sizes.high - sizes.low);
    const byte_unit unit = unit_for(std::exp2(exponent));
    const std::string or_less = sizes.clipped && exponent == sizes.low ? "≤ " : "";
    write_text(c, size_scale.right() + 7, y + 4,
               or_less + decimal(std::exp2(exponent) / unit.bytes, 0) + " " + unit.name, 0, 11);
  }
  use(c, muted);
  write_text(c, size_scale.right() + 58, size_scale.top - 10, "block size", 1, 11);
}

void draw_blocks(cairo_t* c, const picture& shown, const used_addresses& used, const size_range& sizes) {
  // On pixels, whatever the output: as shapes of an SVG, a hundred thousand blocks would be too many to open.
  const surface_handle image(cairo_image_surface_create(CAIRO_FORMAT_ARGB32,
                                                        static_cast<int>(map_panel.width * pixels_per_unit),
                                                        static_cast<int>(map_panel.height * pixels_per_unit)));
  const context_handle map(cairo_create(image.get()));
  const double x_scale =
      map_panel.width * pixels_per_unit / static_cast<double>(std::max<std::size_t>(shown.events, 1));
  const double bottom = map_panel.height * pixels_per_unit;
  const double y_scale = bottom / static_cast<double>(std::max<std::uint64_t>(used.total(), 1));
  for (const drawn_block& block : shown.blocks) {
    const double left = static_cast<double>(block.begin) * x_scale;
    const double height = static_cast<double>(block.bytes) * y_scale;
    const double top = bottom - static_cast<double>(used.offset(block.address)) * y_scale - height;
    use(map.get(), size_colour(sizes.position(block.bytes)));
    cairo_rectangle(map.get(), left, top, static_cast<double>(block.end) * x_scale - left, height);
    cairo_fill(map.get());
  }
  cairo_save(c);
  cairo_translate(c, map_panel.left, map_panel.top);
  cairo_scale(c, 1 / pixels_per_unit, 1 / pixels_per_unit);
  cairo_set_source_surface(c, image.get(), 0, 0);
  cairo_paint(c);
  cairo_restore(c);
}

void draw_map(cairo_t* c, const picture& shown) {
  if (shown.blocks.empty()) return;
  const used_addresses used(shown.blocks);
  const size_range sizes = sizes_of(shown.blocks);
  const panel area(c, map_panel, event_axis(shown.events),
                   byte_axis(static_cast<double>(used.total()), "addresses, unused ranges left out"));
  area.draw_axes();
  draw_blocks(c, shown, used, sizes);
  area.draw_frame();
  draw_size_scale(c, sizes);
}

void draw_row(cairo_t* c, const picture& shown) {
  use(c, ink);
  write_text(c, memory_panel.left, 34, shown.title, 0, 18, true);
  use(c, muted);
  write_text(c, memory_panel.left, 57, shown.subtitle);
  if (!shown.blocks.empty())
    write_text(c, map_panel.left, 57, "address map of " + shown.map_name + ": every block, where and while it is live");
  draw_memory(c, shown);
  draw_map(c, shown);
}

void draw_page(cairo_t* c, std::span<const picture> pictures) {
  use(c, {1, 1, 1});
  cairo_paint(c);
  for (const picture& shown : pictures) {
    draw_row(c, shown);
    cairo_translate(c, 0, row_height);
  }
}

void check(cairo_status_t status, const std::filesystem::path& file) {
  if (status != CAIRO_STATUS_SUCCESS) throw std::runtime_error(file.string() + ": " + cairo_status_to_string(status));
}

}  // namespace

bool is_plot_name(const std::filesystem::path& file) {
  return file.extension() == ".png" || file.extension() == ".svg";
}

void draw(const std::filesystem::path& file, std::span<const picture> pictures) {
  const font_cache fonts;
  const double height = row_height * static_cast<double>(pictures.size());
  const bool vector = file.extension() == ".svg";
  const surface_handle surface(
      vector ? cairo_svg_surface_create(file.c_str(), page_width, height)
             : cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(page_width * pixels_per_unit),
                                          static_cast<int>(height * pixels_per_unit)));
  {
    const context_handle c(cairo_create(surface.get()));
    if (!vector) cairo_scale(c.get(), pixels_per_unit, pixels_per_unit);
    draw_page(c.get(), pictures);
    check(cairo_status(c.get()), file);
  }
  if (vector) {
    cairo_surface_finish(surface.get());
    check(cairo_surface_status(surface.get()), file);
  } else {
    check(cairo_surface_write_to_png(surface.get(), file.c_str()), file);
  }
}

}  // namespace orderly::bench
