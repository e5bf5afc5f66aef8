#include "host.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "address_space.h"

namespace weave::vmm {
namespace {

constexpr char kForkedText[] = "this process was forked from the one that opened the driver";

Status status_of(int error) { return error == ENOMEM || error == ENOSPC ? Status::kOutOfMemory : Status::kFailed; }

// Page numbers sort as their offsets do and are never used twice, by any driver of this process: the number of a
// destroyed page, or of another driver's page, is refused.
Page page_number(std::size_t index) {
  static std::atomic<std::uint32_t> serial{0};
  return (static_cast<Page>(index) << 32) | (serial.fetch_add(1) + 1u);
}

}  // namespace

HostDriver::HostDriver(std::size_t limit_bytes) : limit_bytes_(limit_bytes), owner_(getpid()), arena_(kPageBytes) {}

std::shared_ptr<HostDriver> HostDriver::open(std::size_t limit_bytes) {
  std::shared_ptr<HostDriver> driver(new HostDriver(limit_bytes));
  if (const int error = driver->arena_.open()) {
    fail(Status::kFailed, "no memory file: %s", std::strerror(error));
    return nullptr;
  }
  return driver;
}

HostDriver::~HostDriver() {
  for (const auto& [base, reservation] : reservations_) munmap(reinterpret_cast<void*>(base), reservation.bytes);
}

bool HostDriver::forked() const { return getpid() != owner_; }

HostDriver::Reservation* HostDriver::reservation_of(Address address, std::size_t bytes) {
  auto after = reservations_.upper_bound(address);
  if (after == reservations_.begin()) return nullptr;
  auto& [base, reservation] = *std::prev(after);
  const std::size_t offset = address - base;
  const bool inside = offset < reservation.bytes && bytes <= reservation.bytes - offset;
  return inside ? &reservation : nullptr;
}

Status HostDriver::reserve(std::size_t bytes, Address* out) {
  if (forked()) return fail(Status::kForked, kForkedText);
  if (bytes == 0 || bytes % kPageBytes != 0) {
    return fail(Status::kInvalidArgument, "%zu bytes is not a positive multiple of %zu", bytes, kPageBytes);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  void* base = nullptr;
  if (const int error = reserve_aligned(bytes, kPageBytes, &base)) {
    return fail(Status::kOutOfAddressSpace, "%s", std::strerror(error));
  }
  *out = reinterpret_cast<Address>(base);
  reservations_[*out] = Reservation{bytes, 0};
  return Status::kOk;
}

Status HostDriver::release(Address base) {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = reservations_.find(base);
  if (found == reservations_.end()) return fail(Status::kInvalidArgument, "no reservation starts there");
  if (found->second.mapped_pages > 0) {
    return fail(Status::kInUse, "%zu pages are still mapped in it", found->second.mapped_pages);
  }
  if (munmap(reinterpret_cast<void*>(base), found->second.bytes) != 0) {
    const int error = errno;
    return fail(Status::kFailed, "%s", std::strerror(error));
  }
  reservations_.erase(found);
  return Status::kOk;
}

Status HostDriver::create_page(Page* out) {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (limit_bytes_ > 0 && (pages_.size() + 1) * kPageBytes > limit_bytes_) {
    return fail(Status::kOutOfMemory, "%zu pages exist and the limit is %zu bytes", pages_.size(), limit_bytes_);
  }
  std::size_t index = 0;
  bool huge = false;
  if (const int error = arena_.commit(&index, &huge)) {
    return fail(status_of(error), "%s", std::strerror(error));
  }
  *out = page_number(index);
  pages_[*out] = PageState{index, huge, false};
  huge_pages_ += huge ? 1 : 0;
  return Status::kOk;
}

Status HostDriver::destroy_page(Page page) {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pages_.find(page);
  if (found == pages_.end()) return fail(Status::kInvalidArgument, "no such page");
  if (found->second.mapped) return fail(Status::kInUse, "the page is still mapped");
  if (const int error = arena_.discard(found->second.index)) {
    return fail(status_of(error), "%s", std::strerror(error));
  }
  huge_pages_ -= found->second.huge ? 1 : 0;
  pages_.erase(found);
  return Status::kOk;
}

Status HostDriver::map(Address address, Page page) {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (address % kPageBytes != 0)
    return fail(Status::kInvalidArgument, "the address is not a multiple of %zu", kPageBytes);
  Reservation* reservation = reservation_of(address, kPageBytes);
  if (reservation == nullptr) return fail(Status::kInvalidArgument, "the address is in no reservation");
  const auto found = pages_.find(page);
  if (found == pages_.end()) return fail(Status::kInvalidArgument, "no such page");
  if (mappings_.count(address) > 0) return fail(Status::kAlreadyMapped, "another page is mapped at the address");
  if (found->second.mapped) return fail(Status::kAlreadyMapped, "the page is mapped at another address");
  if (const int error = arena_.map(reinterpret_cast<void*>(address), found->second.index)) {
    return fail(status_of(error), "%s", std::strerror(error));
  }
  found->second.mapped = true;
  mappings_[address] = Mapping{page, epoch_};
  ++reservation->mapped_pages;
  return Status::kOk;
}

Status HostDriver::unmap(Address address) {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = mappings_.find(address);
  if (found == mappings_.end()) return fail(Status::kNotMapped, "no mapping starts at the address");
  if (found->second.made_in_epoch == epoch_) return fail(Status::kNotFenced, "no fence since the page was mapped");
  if (const int error = make_hole(reinterpret_cast<void*>(address), kPageBytes)) {
    return fail(status_of(error), "%s", std::strerror(error));
  }
  pages_.at(found->second.page).mapped = false;
  --reservation_of(address, kPageBytes)->mapped_pages;
  mappings_.erase(found);
  return Status::kOk;
}

Status HostDriver::fence() {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  ++epoch_;
  return Status::kOk;
}

Status HostDriver::check_range(Address address, std::size_t bytes) {
  if (forked()) return fail(Status::kForked, kForkedText);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bytes == 0 || reservation_of(address, bytes) == nullptr) {
    return fail(Status::kInvalidArgument, "%zu bytes there are not inside one reservation", bytes);
  }
  return Status::kOk;
}

Stats HostDriver::stats() {
  Stats stats;
  if (forked()) return stats;
  const std::lock_guard<std::mutex> lock(mutex_);
  stats.pages = pages_.size();
  stats.mapped_pages = mappings_.size();
  stats.reservations = reservations_.size();
  for (const auto& [base, reservation] : reservations_) stats.reserved_bytes += reservation.bytes;
  stats.huge_pages = huge_pages_;
  return stats;
}

}  // namespace weave::vmm
