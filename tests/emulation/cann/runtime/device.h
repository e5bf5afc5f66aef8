// The emulated devices: how much memory of each is in use, and whether it has faulted.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>

#include "acl/acl.h"

namespace cann {

class Device {
 public:
  explicit Device(int32_t id) : id(id) {}

  // Takes `bytes` of the device's memory, or refuses with "out of memory".
  void take(size_t bytes);
  void give_back(size_t bytes);
  size_t free_bytes() const;

  // A fault stays: from then on no task runs, and every wait on this device answers the fault's code.
  void fault() { faulted_ = true; }
  bool faulted() const { return faulted_; }
  void require_healthy() const;

  // Whether this device may reach the memory of `peer`.
  void enable_peer(int32_t peer);
  bool reaches(int32_t peer);

  const int32_t id;

 private:
  mutable std::mutex mutex_;
  size_t used_bytes_ = 0;
  std::set<int32_t> peers_;
  std::atomic<bool> faulted_{false};
};

// Refuses an id that no device has.
Device& device(int64_t id);

// The device of the calling thread's context; refuses with "context null" when it has none.
Device& current_device();

}  // namespace cann
