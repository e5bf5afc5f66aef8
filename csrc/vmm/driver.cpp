#include "driver.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>

namespace weave::vmm {
namespace {

Status refuse_forked() { return fail(Status::kForked, "this process was forked from the one that opened the driver"); }

// Page numbers sort as `order` does and are never used twice, by any driver of this process: the number of a
// destroyed page, or of another driver's page, is refused.
Page page_number(std::uint32_t order) {
  static std::atomic<std::uint32_t> serial{0};
  return (static_cast<Page>(order) << 32) | (serial.fetch_add(1) + 1u);
}

}  // namespace

Driver::Driver(std::unique_ptr<Device> device, std::size_t limit_bytes)
    : device_(std::move(device)), page_bytes_(device_->granularity()), limit_bytes_(limit_bytes), owner_(getpid()) {}

// What is left is given back as far as the device lets it; there is nobody to tell of a failure.
Driver::~Driver() {
  if (forked()) {
    static_cast<void>(device_.release());  // the device's own end would give back what the parent holds
    return;
  }
  if (!mappings_.empty()) device_->synchronize();
  for (const auto& [address, mapping] : mappings_) device_->unmap(address);
  for (const auto& [page, state] : pages_) device_->destroy(state.handle);
  for (const auto& [base, reservation] : reservations_) device_->release(base, reservation.bytes);
}

bool Driver::forked() const { return getpid() != owner_; }

Driver::Reservation* Driver::reservation_of(Address address, std::size_t bytes) {
  auto after = reservations_.upper_bound(address);
  if (after == reservations_.begin()) return nullptr;
  auto& [base, reservation] = *std::prev(after);
  const std::size_t offset = address - base;
  const bool inside = offset < reservation.bytes && bytes <= reservation.bytes - offset;
  return inside ? &reservation : nullptr;
}

Status Driver::reserve(std::size_t bytes, Address* out) {
  if (forked()) return refuse_forked();
  if (bytes == 0 || bytes % page_bytes_ != 0) {
    return fail(Status::kInvalidArgument, "%zu bytes is not a positive multiple of %zu", bytes, page_bytes_);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  Address base = 0;
  const Status status = device_->reserve(bytes, &base);
  if (status != Status::kOk) return status;
  if (base % page_bytes_ != 0) {
    device_->release(base, bytes);
    return fail(Status::kOutOfAddressSpace, "the device reserved %#zx, not a multiple of %zu", base, page_bytes_);
  }
  reservations_[base] = Reservation{bytes, 0};
  *out = base;
  return Status::kOk;
}

Status Driver::release(Address base) {
  if (forked()) return refuse_forked();
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = reservations_.find(base);
  if (found == reservations_.end()) return fail(Status::kInvalidArgument, "no reservation starts there");
  if (found->second.mapped_pages > 0) {
    return fail(Status::kInUse, "%zu pages are still mapped in it", found->second.mapped_pages);
  }
  const Status status = device_->release(base, found->second.bytes);
  if (status == Status::kOk) reservations_.erase(found);
  return status;
}

Status Driver::create_page(Page* out) {
  if (forked()) return refuse_forked();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t pages = pages_.size() + creating_;
    if (limit_bytes_ > 0 && (pages + 1) * page_bytes_ > limit_bytes_) {
      return fail(Status::kOutOfMemory, "%zu pages exist and the limit is %zu bytes", pages, limit_bytes_);
    }
    ++creating_;
  }
  NewPage made;
  const Status status = device_->create(&made);
  const std::lock_guard<std::mutex> lock(mutex_);
  --creating_;
  if (status != Status::kOk) return status;
  *out = page_number(made.order);
  pages_[*out] = PageState{made.handle, made.huge, false};
  huge_pages_ += made.huge ? 1 : 0;
  return Status::kOk;
}

Status Driver::destroy_page(Page page) {
  if (forked()) return refuse_forked();
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pages_.find(page);
  if (found == pages_.end()) return fail(Status::kInvalidArgument, "no such page");
  if (found->second.mapped) return fail(Status::kInUse, "the page is still mapped");
  const Status status = device_->destroy(found->second.handle);
  if (status != Status::kOk) return status;
  huge_pages_ -= found->second.huge ? 1 : 0;
  pages_.erase(found);
  return Status::kOk;
}

Status Driver::map(Address address, Page page) {
  if (forked()) return refuse_forked();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (address % page_bytes_ != 0)
    return fail(Status::kInvalidArgument, "the address is not a multiple of %zu", page_bytes_);
  Reservation* reservation = reservation_of(address, page_bytes_);
  if (reservation == nullptr) return fail(Status::kInvalidArgument, "the address is in no reservation");
  const auto found = pages_.find(page);
  if (found == pages_.end()) return fail(Status::kInvalidArgument, "no such page");
  if (mappings_.count(address) > 0) return fail(Status::kAlreadyMapped, "another page is mapped at the address");
  if (found->second.mapped) return fail(Status::kAlreadyMapped, "the page is mapped at another address");
  const Status status = device_->map(address, found->second.handle);
  if (status != Status::kOk) return status;
  found->second.mapped = true;
  mappings_[address] = Mapping{page, ++maps_};
  ++reservation->mapped_pages;
  return Status::kOk;
}

Status Driver::unmap(Address address) {
  if (forked()) return refuse_forked();
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = mappings_.find(address);
  if (found == mappings_.end()) return fail(Status::kNotMapped, "no mapping starts at the address");
  if (found->second.made_at > fenced_) return fail(Status::kNotFenced, "no fence since the page was mapped");
  const Status status = device_->unmap(address);
  if (status != Status::kOk) return status;
  pages_.at(found->second.page).mapped = false;
  --reservation_of(address, page_bytes_)->mapped_pages;
  mappings_.erase(found);
  return Status::kOk;
}

Status Driver::fence() {
  if (forked()) return refuse_forked();
  std::uint64_t seen = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    seen = maps_;
  }
  const Status status = device_->synchronize();
  if (status != Status::kOk) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  fenced_ = std::max(fenced_, seen);
  return Status::kOk;
}

Status Driver::check_range(Address address, std::size_t bytes) {
  if (forked()) return refuse_forked();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bytes == 0 || reservation_of(address, bytes) == nullptr) {
    return fail(Status::kInvalidArgument, "%zu bytes there are not inside one reservation", bytes);
  }
  return Status::kOk;
}

Stats Driver::stats() {
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
