/// \file
/// One thread for each stream, fed by a queue of one direction.
///
/// Representation  A linked list. `last_` is the host's end, `done_with_` the worker's: the node whose item has run.
///                 The worker frees a node when it steps to the next.
/// Invariants      I1  Nothing that a worker writes is ever read by a host thread in put().
///                 I2  After (a) the host does not touch the node before the new one.
/// Ordering        Q   put (a), release -> run (b), acquire: the item, and all that the host did before.
///                     By I1 there is no edge back. A ring would need one, to tell that a slot is free; the allocator
///                     does that here, and its promise (a free happens before the next allocation of the same bytes) is
///                     one that ThreadSanitizer does not take for an edge.
/// Progress        put waits for no worker.
#include "executor.hpp"

#include <mutex>
#include <thread>
#include <utility>

namespace orderly::detail {
namespace {

struct queue_node {
  explicit queue_node(item&& of) : entry(std::move(of)) {}

  item entry;
  atomic<queue_node*> next{nullptr};
};

class worker final : public work_queue {
 public:
  worker() : thread_([this] { run(); }) {}

  /// A stop has been put. Waits for it.
  ~worker() override { thread_.join(); }

  void put(std::unique_ptr<queue_node> added) noexcept {
    queue_node* const before = std::exchange(last_, added.release());
    before->next.store(last_, release);                           // (a) Q
    arrivals_.ring();
  }

  /// What ends the worker: made with it, so that ending needs no memory.
  [[nodiscard]] std::unique_ptr<queue_node> take_stop() noexcept { return std::move(stop_); }
  [[nodiscard]] std::unique_ptr<queue_node> take_burial() noexcept { return std::move(burial_); }

 private:
  void run() noexcept {
    for (;;) {
      queue_node* arrived = nullptr;
      arrivals_.wait([&] {
        arrived = done_with_->next.load(acquire);                 // (b) Q
        return arrived != nullptr;
      });
      done_with_.reset(arrived);
      if (arrived->entry.what == item::kind::stop) return;
      run_item(arrived->entry);
    }
  }

  static void run_item(item& entry) noexcept {
    switch (entry.what) {
      case item::kind::work:
        entry.work();
        entry.work = nullptr;  // what it holds must not wait for the next item
        break;
      case item::kind::record:
        entry.of->complete();
        break;
      case item::kind::wait:
        entry.of->wait();
        entry.of->end_wait();
        break;
      case item::kind::stop:
        break;
    }
  }

  std::unique_ptr<queue_node> done_with_ = std::make_unique<queue_node>(item{});  // the worker's
  alignas(interference) queue_node* last_ = done_with_.get();  // the host's
  std::unique_ptr<queue_node> stop_ = std::make_unique<queue_node>(item{item::kind::stop, nullptr, nullptr});
  std::unique_ptr<queue_node> burial_ =
      std::make_unique<queue_node>(item{item::kind::work, [this] { delete this; }, nullptr});
  doorbell arrivals_;
  std::thread thread_;  // last: it uses the others
};

/// Whoever joins a worker learns all that it did. A host thread that destroys a stream must not; one more worker, the
/// undertaker, joins those whose stream is gone.
class workers final : public executor {
 public:
  ~workers() override { undertaker_.put(undertaker_.take_stop()); }

  [[nodiscard]] work_queue& open() override { return *new worker; }

  void close(work_queue& closed) noexcept override {
    auto& ending = static_cast<worker&>(closed);
    std::unique_ptr<queue_node> burial = ending.take_burial();
    ending.put(ending.take_stop());
    const std::lock_guard hold(burials_);
    undertaker_.put(std::move(burial));
  }

  void put(work_queue& into, item&& entry) override {
    static_cast<worker&>(into).put(std::make_unique<queue_node>(std::move(entry)));
  }

  void wait_for(event& awaited) noexcept override { awaited.wait(); }

  /// The undertaker has joined all workers that were closed before.
  void wait_for_closed(event& last) override {
    auto all = std::make_unique<queue_node>(item{item::kind::record, nullptr, &last});
    {
      const std::lock_guard hold(burials_);
      undertaker_.put(std::move(all));
    }
    last.wait();
  }

 private:
  mutex burials_;  // among host threads
  worker undertaker_;
};

}  // namespace

std::unique_ptr<executor> make_workers() { return std::make_unique<workers>(); }

}  // namespace orderly::detail
