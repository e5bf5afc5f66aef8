// Plain device memory: aclrtMalloc and aclrtFree.
#pragma once

#include <map>
#include <mutex>
#include <optional>

#include "device.h"
#include "place.h"

namespace cann {

class Allocations {
 public:
  // At least `bytes` of `device`, from a multiple of 2 MiB on; never shares a page with another allocation.
  void* allocate(size_t bytes, Device& device);
  void free(void* base);

  // The place of a range that begins in an allocation.
  std::optional<Place> find(const void* address, size_t bytes);

 private:
  struct Allocation {
    size_t bytes;
    Device& device;
  };

  std::mutex mutex_;
  std::map<const char*, Allocation> allocations_;
};

Allocations& allocations();

}  // namespace cann
