// Threads of a parallel region that share out one part of some work after the other.
//
// A part is over when all of its units are done, not when all threads have come: one that the
// system has put aside between two units holds nobody up, and skips what the others did without it.
// Who waits spins for some microseconds and then lets others run, but never sleeps: a wake-up would
// take longer than a whole part.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "kernels.h"

namespace pagemill::PAGEMILL_ISA {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What the threads of a team share: both only grow, from part to part.
struct TeamState {
  alignas(64) std::atomic<int64_t> taken{0};
  alignas(64) std::atomic<int64_t> done{0};
};

struct Nothing {
  void operator()() const {}
};

// One thread's member of a team. All members call the same functions in the same order with the
// same numbers of units.
class Team {
 public:
  explicit Team(TeamState& state) : state_(state), parts_(2 * omp_get_num_threads()) {}

  // Calls work(unit) for all units, of which there is at least one; they are in the order in which
  // they are taken. Then finish(), by one thread.
  template <typename Work, typename Finish = Nothing>
  void share(int64_t units, Work work, Finish finish = {}) {
    const int64_t end = base_ + units;
    for (int64_t at = state_.taken.load(std::memory_order_relaxed); at < end;) {
      const int64_t count = std::max<int64_t>(1, (end - at) / parts_);
      if (!state_.taken.compare_exchange_weak(at, at + count, std::memory_order_relaxed)) continue;
      for (int64_t i = at; i < at + count; i++) work(i - base_);
      complete(count, end, finish);
      at = state_.taken.load(std::memory_order_relaxed);
    }
    wait<Finish>(end);
  }

  // After `mine` of all `units` were done some other way: wait for the others'.
  template <typename Finish = Nothing>
  void meet(int64_t units, int64_t mine, Finish finish = {}) {
    state_.taken.fetch_add(mine, std::memory_order_relaxed);
    complete(mine, base_ + units, finish);
    wait<Finish>(base_ + units);
  }

 private:
  static constexpr int kSpins = 1000;
  template <typename Finish>
  static constexpr bool kFinishes = !std::is_same_v<Finish, Nothing>;

  template <typename Finish>
  void complete(int64_t count, int64_t end, Finish finish) {
    if (count == 0) return;
    if (state_.done.fetch_add(count, std::memory_order_acq_rel) + count < end) return;
    if constexpr (kFinishes<Finish>) {
      finish();  // one unit more
      state_.taken.store(end + 1, std::memory_order_relaxed);
      state_.done.store(end + 1, std::memory_order_release);
    }
  }

  template <typename Finish>
  void wait(int64_t end) {
    base_ = end + kFinishes<Finish>;
    for (int spins = 0; state_.done.load(std::memory_order_acquire) < base_;)
      spins < kSpins ? (spins++, pause()) : std::this_thread::yield();
  }

  TeamState& state_;
  const int64_t parts_;
  int64_t base_ = 0;
};

}  // namespace pagemill::PAGEMILL_ISA
