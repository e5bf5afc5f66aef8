// Where an address lies: in host memory, in memory of a device, or in a reservation with nothing under it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cann {

struct Place {
  enum class Kind { kHost, kDevice, kHole };
  Kind kind;
  int32_t device;  // of kDevice only

  bool on_host() const { return kind == Kind::kHost; }
  bool backed() const { return kind != Kind::kHole; }
};

// The place of [address, address + bytes). A range that runs out of its allocation or mapping is a hole.
Place place_of(const void* address, size_t bytes);

}  // namespace cann
