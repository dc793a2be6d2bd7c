#include "tag_accounts.hpp"

namespace orderly::detail {

tag_accounts::~tag_accounts() {
  for (std::size_t i = 0; i < tables_.size(); ++i)
    release_zeroed(tables_[i].load(relaxed), bounds::tag_names * sizeof(account));  // no other thread
}

bool tag_accounts::open(std::uint64_t granules) noexcept {
  return totals_.reserve(bounds::tag_names) && tables_.reserve(bounds::fronts) && by_granule_.reserve(granules);
}

tag_accounts::account* tag_accounts::new_table(std::uint32_t front) noexcept {
  auto* const made = static_cast<account*>(reserve_zeroed(bounds::tag_names * sizeof(account)));
  if (made == nullptr) return nullptr;
  writes_plain(made);
  tables_[front - 1].store(made, release);  // look(): the table is there
  return made;
}

void tag_accounts::raise_peak(total& in, std::int64_t reached) noexcept {
  std::int64_t peak = in.peak.load(relaxed);  // a figure
  while (peak < reached && !in.peak.compare_exchange_weak(peak, reached, relaxed, relaxed)) {
  }
}

void tag_accounts::publish(account& of, total& in) noexcept {
  const std::int64_t highest = of.highest.load(relaxed);  // own figures
  const std::int64_t before = in.requested.fetch_add(highest - of.room.load(relaxed), relaxed);  // a figure
  raise_peak(in, before + highest);
  of.highest.store(0, relaxed);
  of.room.store(0, relaxed);
  const std::int64_t least = std::clamp(in.peak.load(relaxed) / 128, least_publish, most_publish);
  const std::uint64_t calls = of.allocations.load(relaxed) + of.frees.load(relaxed);
  const bool often = calls - of.published_at_call < calls_per_publish;
  const std::int64_t at = least_publish + of.patience;
  of.patience = std::clamp(often ? 2 * at : at / 2, least, most_publish) - least_publish;
  of.published_at_call = calls;
}

void tag_accounts::add_to_total(std::uint16_t tag, std::int64_t requested, std::int64_t length,
                                std::uint64_t allocations, std::uint64_t frees) noexcept {
  total& in = totals_[tag];  // figures, all of them
  raise_peak(in, in.requested.fetch_add(requested, relaxed) + requested);
  in.allocated.fetch_add(length, relaxed);
  if (allocations != 0) in.allocations.fetch_add(allocations, relaxed);
  if (frees != 0) in.frees.fetch_add(frees, relaxed);
}

tag_accounts::sum tag_accounts::look(std::uint16_t tag, std::size_t fronts) const noexcept {
  const total& in = totals_[tag];  // figures, all of them
  const auto each_account = [&](const auto& visit) {
    for (std::size_t i = 0; i < fronts; ++i) {
      const account* const table = tables_[i].load(acquire);  // new_table()
      if (table == nullptr) continue;
      reads_plain(table);
      visit(table[tag]);
    }
  };
  std::int64_t requested = in.requested.load(relaxed);
  std::int64_t allocated = in.allocated.load(relaxed);
  sum s;
  s.allocations = in.allocations.load(relaxed);
  s.frees = in.frees.load(relaxed);
  each_account([&](const account& of) {
    requested += of.highest.load(relaxed) - of.room.load(relaxed);
    allocated += of.allocated.load(relaxed);
    s.allocations += of.allocations.load(relaxed);
    s.frees += of.frees.load(relaxed);
  });
  std::int64_t peak = std::max(in.peak.load(relaxed), requested);
  each_account([&](const account& of) { peak = std::max(peak, requested + of.room.load(relaxed)); });
  s.requested = static_cast<std::size_t>(std::max<std::int64_t>(requested, 0));
  s.allocated = static_cast<std::size_t>(std::max<std::int64_t>(allocated, 0));
  s.peak_requested = static_cast<std::size_t>(std::max<std::int64_t>(peak, 0));
  return s;
}

}  // namespace orderly::detail
