// One small interface over the virtual memory of a device. Its contract is the intersection of what ACL, CUDA and the
// host offer, so that code that passes on one backend holds on all of them:
//
//   - a page is one physical handle of `granularity()` bytes; it is mapped whole, at offset 0, at one address at a
//   time;
//   - an address is a multiple of the granularity inside one reservation; a mapping ends exactly as it was made;
//   - a page belongs to the driver, hence the device, that created it; a reservation holds pages of that driver only;
//   - a mapping ends only after a `fence()` that came after it was made: no kernel may still be using it;
//   - a page is destroyed only when unmapped, a reservation released only when empty;
//   - a mapped page can be read and written; touching a hole is a fault.
//
// Nothing here throws, aborts or prints. A call that fails changes nothing, returns its status, and leaves a sentence
// in `last_error()` of the calling thread. All calls are safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace weave::vmm {

// The values are part of the binding: npu_weave/memory/host.py maps them to error codes.
enum class Status : int {
  kOk = 0,
  kInvalidArgument = 1,
  kOutOfMemory = 2,
  kOutOfAddressSpace = 3,
  kAlreadyMapped = 4,
  kNotMapped = 5,
  kInUse = 6,
  kNotFenced = 7,
  kForked = 8,
  kFailed = 9,
};

using Address = std::uintptr_t;
using Page = std::uint64_t;  // never 0; a destroyed page's number is not used again by this process

struct Stats {
  std::size_t pages = 0;         // created and not destroyed
  std::size_t mapped_pages = 0;  // of these, mapped
  std::size_t reservations = 0;
  std::size_t reserved_bytes = 0;
  std::size_t huge_pages = 0;  // created pages that the system backs with one large page
};

class Driver {
 public:
  virtual ~Driver() = default;

  virtual const char* name() const = 0;
  virtual std::size_t granularity() const = 0;  // bytes

  // Takes `bytes` (a multiple of the granularity) of address space; no memory lies under it yet.
  virtual Status reserve(std::size_t bytes, Address* out) = 0;
  virtual Status release(Address base) = 0;

  // Commits one page of zeroed physical memory. Memory that is short shows here, never at the first touch.
  virtual Status create_page(Page* out) = 0;
  virtual Status destroy_page(Page page) = 0;

  // Maps `page` readable and writable at `address`.
  virtual Status map(Address address, Page page) = 0;
  virtual Status unmap(Address address) = 0;

  // Waits until the device has finished all work it was given.
  virtual Status fence() = 0;

  // Whether [address, address + bytes) lies inside one reservation.
  virtual Status check_range(Address address, std::size_t bytes) = 0;

  virtual Stats stats() = 0;

  // What went wrong in the latest failed call of this thread, in words.
  static const std::string& last_error();

 protected:
  // Keeps the sentence for last_error() and returns `status`, so that a refusal is one line.
  static Status fail(Status status, const char* pattern, ...) __attribute__((format(printf, 2, 3)));
};

}  // namespace weave::vmm
