// Long work on bytes in turns, after each of which others have theirs; npu_weave/turns.py tells why.
#pragma once

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace weave::torch_binding {

class Turns {
 public:
  static constexpr std::size_t kBytes = 256 << 10;  // as PIECE_BYTES in npu_weave/turns.py

  // `rest`: how many times as long as it worked the thread sleeps after a turn; 0: it only yields.
  explicit Turns(double rest) : rest_(rest), begun_(rest > 0 ? thread_seconds() : 0) {}

  // How many of `size` bytes are left to this turn.
  std::size_t piece(std::size_t size) const { return std::min(size, kBytes - done_); }

  // So many bytes are done, no more than `piece` said.
  void done(std::size_t bytes) {
    done_ += bytes;
    if (done_ < kBytes) return;
    done_ = 0;
    if (rest_ <= 0) {
      sched_yield();
      return;
    }
    const double seconds = rest_ * (thread_seconds() - begun_);
    double whole = 0;
    const double part = std::modf(seconds, &whole);
    const timespec sleep{static_cast<time_t>(whole), static_cast<long>(part * 1e9)};
    nanosleep(&sleep, nullptr);
    begun_ = thread_seconds();
  }

 private:
  static double thread_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  const double rest_;
  double begun_;
  std::size_t done_ = 0;
};

}  // namespace weave::torch_binding
