// What a kind of memory must be able to do. The rules of use are kept above it, by `Driver`, once for all kinds: a
// device may count on valid arguments and on calls that come one at a time, but for `synchronize`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "status.h"

namespace weave::vmm {

using Address = std::uintptr_t;
using Handle = std::uint64_t;  // physical memory, as the device names it

struct NewPage {
  Handle handle = 0;
  std::uint32_t order = 0;  // where the memory lies, when its place matters: pages are handed out lowest first
  bool huge = false;        // known to be backed by one large page
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const char* name() const = 0;
  virtual std::size_t granularity() const = 0;  // bytes of a page, a power of two

  // Address space at a multiple of the granularity, all holes.
  virtual Status reserve(std::size_t bytes, Address* out) = 0;
  virtual Status release(Address base, std::size_t bytes) = 0;

  // One page of physical memory. Memory that is short shows here, never at the first touch.
  virtual Status create(NewPage* out) = 0;
  virtual Status destroy(Handle handle) = 0;

  // Maps the whole page, readable and writable. A failure leaves a hole.
  virtual Status map(Address address, Handle handle) = 0;
  virtual Status unmap(Address address) = 0;

  // Waits until the device has finished all work it was given. Called from any thread, beside other calls.
  virtual Status synchronize() = 0;
};

}  // namespace weave::vmm
