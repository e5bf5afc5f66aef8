#include "allocations.h"

#include <sys/mman.h>

#include "call.h"
#include "pages.h"

namespace cann {

void* Allocations::allocate(size_t bytes, Device& device) {
  const size_t whole = round_up(bytes, kHugePage);
  std::lock_guard lock(mutex_);
  device.take(whole);
  try {
    char* const base = map_aligned(whole, PROT_READ | PROT_WRITE);
    allocations_.insert({base, {whole, device}});
    return base;
  } catch (const Refusal&) {
    device.give_back(whole);
    throw;
  }
}

void Allocations::free(void* base) {
  std::lock_guard lock(mutex_);
  const auto found = allocations_.find(static_cast<char*>(base));
  require(found != allocations_.end(), kRuleBroken, base, " is not the start of an allocation");
  munmap(base, found->second.bytes);
  found->second.device.give_back(found->second.bytes);
  allocations_.erase(found);
}

std::optional<Place> Allocations::find(const void* address, size_t bytes) {
  const char* const first = static_cast<const char*>(address);
  std::lock_guard lock(mutex_);
  auto after = allocations_.upper_bound(first);
  if (after == allocations_.begin()) return std::nullopt;
  const auto& [base, allocation] = *--after;
  if (first >= base + allocation.bytes) return std::nullopt;
  const bool inside = bytes <= static_cast<size_t>(base + allocation.bytes - first);
  return Place{inside ? Place::Kind::kDevice : Place::Kind::kHole, allocation.device.id};
}

Allocations& allocations() {
  static auto* const all = new Allocations;
  return *all;
}

}  // namespace cann

EMULATED aclError aclrtMalloc(void** out, size_t bytes, aclrtMemMallocPolicy) {
  return cann::answer([=] {
    cann::require(out && bytes, cann::kBadArgument, "devPtr is null or size is 0");
    *out = cann::allocations().allocate(bytes, cann::current_device());
  });
}

EMULATED aclError aclrtMallocAlign32(void** out, size_t bytes, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(out, bytes, policy);
}

EMULATED aclError aclrtFree(void* base) {
  return cann::answer([=] { cann::allocations().free(base); });
}
