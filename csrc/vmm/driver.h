// Virtual memory of one device under one strict contract: the intersection of what ACL, CUDA and the host offer, so
// that code that passes on one device holds on all of them:
//
//   - a page is one physical handle of `granularity()` bytes; it is mapped whole, at offset 0, at one address at a
//   time;
//   - an address is a multiple of the granularity inside one reservation; a mapping ends exactly as it was made;
//   - a page belongs to the driver, hence the device, that created it; a reservation holds pages of that driver only;
//   - a mapping ends only after a `fence()` that began after it was made: no kernel may still be using it;
//   - a page is destroyed only when unmapped, a reservation released only when empty;
//   - a mapped page can be read and written; touching a hole is a fault;
//   - the process that opened a driver is the one that uses it: after a fork, every call that would change anything
//   returns kForked in the child, and the child's copy never gives back what the parent holds.
//
// Nothing here throws, aborts or prints. A call that fails changes nothing, returns its status, and leaves a sentence
// in `last_error()` of the calling thread. All calls are safe from any thread.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "device.h"

namespace weave::vmm {

using Page = std::uint64_t;  // never 0; a destroyed page's number is not used again by this process

struct Stats {
  std::size_t pages = 0;         // created and not destroyed
  std::size_t mapped_pages = 0;  // of these, mapped
  std::size_t reservations = 0;
  std::size_t reserved_bytes = 0;
  std::size_t huge_pages = 0;  // created pages that the system backs with one large page
};

class Driver final {
 public:
  // `limit_bytes`: physical memory this driver may create; 0 means no limit but the device's.
  Driver(std::unique_ptr<Device> device, std::size_t limit_bytes);
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  const char* name() const { return device_->name(); }
  std::size_t granularity() const { return page_bytes_; }

  // Takes `bytes` (a multiple of the granularity) of address space; no memory lies under it yet.
  Status reserve(std::size_t bytes, Address* out);
  Status release(Address base);

  // Commits one page of physical memory; its content is the device's affair.
  // Takes milliseconds where the system has to find and clear the memory. Other calls go on meanwhile.
  Status create_page(Page* out);
  Status destroy_page(Page page);

  // Maps `page` readable and writable at `address`.
  Status map(Address address, Page page);
  Status unmap(Address address);

  // Waits until the device has finished all work it was given. Other calls go on meanwhile.
  Status fence();

  // Whether [address, address + bytes) lies inside one reservation.
  Status check_range(Address address, std::size_t bytes);

  // All zeros in a forked child.
  Stats stats();

 private:
  struct PageState {
    Handle handle;
    bool huge;
    bool mapped;
  };
  struct Mapping {
    Page page;
    std::uint64_t made_at;
  };
  struct Reservation {
    std::size_t bytes;
    std::size_t mapped_pages;
  };

  bool forked() const;
  Reservation* reservation_of(Address address, std::size_t bytes);

  std::unique_ptr<Device> device_;
  const std::size_t page_bytes_;
  const std::size_t limit_bytes_;
  const pid_t owner_;
  std::mutex mutex_;
  std::uint64_t maps_ = 0;    // mappings made so far; the clock of this driver
  std::uint64_t fenced_ = 0;  // mappings made up to here have seen a fence
  std::size_t huge_pages_ = 0;
  std::size_t creating_ = 0;  // pages on their way
  std::unordered_map<Page, PageState> pages_;
  std::unordered_map<Address, Mapping> mappings_;
  std::map<Address, Reservation> reservations_;
};

}  // namespace weave::vmm
