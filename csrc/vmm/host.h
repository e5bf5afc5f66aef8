// The host driver: the same contract as a device's, over a memory file and PROT_NONE reservations.
//
// It is as strict as the strictest device, so that code tested on it holds elsewhere, and an access outside of what is
// mapped crashes instead of reading zeros.
//
// Fork: a child shares the parent's mapped pages and may read them, but every call that would change anything returns
// kForked there, and the child's copy of the driver never takes memory from the parent.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "arena.h"
#include "driver.h"

namespace weave::vmm {

class HostDriver final : public Driver {
 public:
  // `limit_bytes`: physical memory this driver may create; 0 means no limit but the machine's.
  // Returns null, with last_error() set, when the system refuses what the driver needs.
  static std::shared_ptr<HostDriver> open(std::size_t limit_bytes);
  ~HostDriver() override;

  const char* name() const override { return "host"; }
  std::size_t granularity() const override { return kPageBytes; }
  Status reserve(std::size_t bytes, Address* out) override;
  Status release(Address base) override;
  Status create_page(Page* out) override;
  Status destroy_page(Page page) override;
  Status map(Address address, Page page) override;
  Status unmap(Address address) override;
  Status fence() override;
  Status check_range(Address address, std::size_t bytes) override;
  Stats stats() override;

 private:
  static constexpr std::size_t kPageBytes = std::size_t{2} << 20;

  struct PageState {
    std::size_t index;
    bool huge;
    bool mapped;
  };
  struct Mapping {
    Page page;
    std::uint64_t made_in_epoch;
  };
  struct Reservation {
    std::size_t bytes;
    std::size_t mapped_pages;
  };

  explicit HostDriver(std::size_t limit_bytes);
  bool forked() const;
  Reservation* reservation_of(Address address, std::size_t bytes);

  const std::size_t limit_bytes_;
  const pid_t owner_;
  std::mutex mutex_;
  Arena arena_;
  std::uint64_t epoch_ = 0;  // number of fences so far
  std::size_t huge_pages_ = 0;
  std::unordered_map<Page, PageState> pages_;
  std::unordered_map<Address, Mapping> mappings_;
  std::map<Address, Reservation> reservations_;
};

}  // namespace weave::vmm
