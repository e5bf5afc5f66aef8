// Physical memory of a device without an address: what a handle of aclrtMallocPhysical stands for.
#pragma once

#include <cstddef>
#include <memory>

#include "device.h"
#include "handles.h"

namespace cann {

// A file in memory. It lives while its handle or a mapping does, which is how the runtime defers aclrtFreePhysical.
class PhysicalMemory {
 public:
  // New memory, taken from the device's account until this object goes.
  static std::shared_ptr<PhysicalMemory> create(Device& device, size_t bytes);

  // Memory that another process made, seen from `device` of this one; takes over `file`. It stays on the other
  // process's account.
  static std::shared_ptr<PhysicalMemory> adopt(Device& device, size_t bytes, int file);

  ~PhysicalMemory();
  PhysicalMemory(const PhysicalMemory&) = delete;
  PhysicalMemory& operator=(const PhysicalMemory&) = delete;

  Device& device;
  const size_t bytes;
  const int file;
  const bool imported;
  bool mapped = false;  // kept by Reservations, under its lock

 private:
  PhysicalMemory(Device& device, size_t bytes, int file, bool imported)
      : device(device), bytes(bytes), file(file), imported(imported) {}
};

Handles<PhysicalMemory>& physical_handles();

// Bytes that a size with these properties must be a multiple of; refuses properties that are not documented.
size_t granularity_of(const aclrtPhysicalMemProp& properties);

}  // namespace cann
