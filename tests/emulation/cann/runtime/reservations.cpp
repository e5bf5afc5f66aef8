#include "reservations.h"

#include <sys/mman.h>

#include "pages.h"

namespace cann {
namespace {

constexpr size_t kMostReserved = size_t{128} << 30;

char* at(void* address) { return static_cast<char*>(address); }

// Puts a hole where a mapping was; the address space stays reserved.
void open_hole(char* address, size_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  require(mmap(address, bytes, PROT_NONE, kFlags, -1, 0) != MAP_FAILED, kOutOfMemory, "this machine cannot unmap");
}

}  // namespace

void* Reservations::reserve(size_t bytes) {
  require(bytes <= kMostReserved, kRuleBroken, "at most 128 GiB in one reservation, asked for ", bytes, " bytes");
  const size_t whole = round_up(bytes, kHugePage);
  std::lock_guard lock(mutex_);
  char* const base = map_aligned(whole, PROT_NONE);
  reservations_.insert({base, {whole, {}}});
  return base;
}

void Reservations::release(void* base) {
  std::lock_guard lock(mutex_);
  const auto found = reservations_.find(at(base));
  require(found != reservations_.end(), kRuleBroken, base, " is not the start of a reservation");
  require(found->second.mappings.empty(), kRuleBroken, base, " still has ", found->second.mappings.size(), " mappings");
  munmap(base, found->second.bytes);
  reservations_.erase(found);
}

void Reservations::map(void* address, size_t bytes, const std::shared_ptr<PhysicalMemory>& memory) {
  require(bytes == memory->bytes, kRuleBroken, "size ", bytes, " is not the handle's ", memory->bytes);
  require(aligned(address, kHugePage), kRuleBroken, address, " is no multiple of 2 MiB");
  std::lock_guard lock(mutex_);
  Reservation& reservation = reserved(at(address), bytes);
  for (const auto& [start, mapping] : reservation.mappings) {
    const PhysicalMemory& other = *mapping.memory;
    require(at(address) >= start + other.bytes || start >= at(address) + bytes, kRuleBroken, address, " is taken");
    require(&other.device == &memory->device, kRuleBroken, "a reservation holds memory of one device only");
    require(other.imported == memory->imported, kRuleBroken, "a reservation holds no imported beside own memory");
  }
  require(!memory->mapped, kRuleBroken, "the handle is mapped already, and mapping it twice is not documented");
  const int protection = PROT_READ | PROT_WRITE;
  require(mmap(address, bytes, protection, MAP_SHARED | MAP_FIXED, memory->file, 0) != MAP_FAILED, kOutOfMemory,
          "this machine cannot map");
  memory->mapped = true;
  reservation.mappings[at(address)] = {memory, {{memory->device.id, ACL_RT_MEM_ACCESS_FLAGS_READWRITE}}};
}

void Reservations::unmap(void* address) {
  std::lock_guard lock(mutex_);
  const auto owner = around(at(address));
  const bool found = owner != reservations_.end() && owner->second.mappings.contains(at(address));
  require(found, kRuleBroken, address, " is not the start of a mapping");
  PhysicalMemory& memory = *owner->second.mappings.at(at(address)).memory;
  open_hole(at(address), memory.bytes);
  memory.mapped = false;
  owner->second.mappings.erase(at(address));
}

void Reservations::grant(void* address, size_t bytes, const aclrtMemAccessDesc& access) {
  const int32_t id = device(access.location.id).id;
  std::lock_guard lock(mutex_);
  const auto [grant, added] = mapped(at(address), bytes).access.insert({id, access.flags});
  require(added || grant->second == access.flags, ACL_ERROR_RT_DRV_INTERNAL_ERROR, "busy: device ", id, " has access ",
          grant->second, " already, which cannot be changed");
}

aclrtMemAccessFlags Reservations::access(void* address, int32_t device) {
  std::lock_guard lock(mutex_);
  const auto owner = around(at(address));
  require(owner != reservations_.end(), kRuleBroken, address, " is not reserved");
  for (const auto& [start, mapping] : owner->second.mappings) {
    if (at(address) < start || at(address) >= start + mapping.memory->bytes) continue;
    const auto grant = mapping.access.find(device);
    return grant == mapping.access.end() ? ACL_RT_MEM_ACCESS_FLAGS_NONE : grant->second;
  }
  throw Refusal(kRuleBroken, text("nothing is mapped at ", address));
}

std::optional<Place> Reservations::find(const void* address, size_t bytes) {
  const char* next = static_cast<const char*>(address);
  std::lock_guard lock(mutex_);
  const auto owner = around(next);
  if (owner == reservations_.end()) return std::nullopt;
  Place place{Place::Kind::kHole, -1};
  const char* const end = next + bytes;
  do {
    auto after = owner->second.mappings.upper_bound(const_cast<char*>(next));
    if (after == owner->second.mappings.begin()) return Place{Place::Kind::kHole, -1};
    const auto& [start, mapping] = *--after;
    if (next >= start + mapping.memory->bytes) return Place{Place::Kind::kHole, -1};
    place = {Place::Kind::kDevice, mapping.memory->device.id};
    next = start + mapping.memory->bytes;
  } while (next < end);
  return place;
}

// The reservation that `address` lies in, or the end.
std::map<char*, Reservations::Reservation>::iterator Reservations::around(const char* address) {
  auto after = reservations_.upper_bound(const_cast<char*>(address));
  if (after == reservations_.begin()) return reservations_.end();
  const auto candidate = --after;
  return address < candidate->first + candidate->second.bytes ? candidate : reservations_.end();
}

Reservations::Reservation& Reservations::reserved(const char* address, size_t bytes) {
  const auto owner = around(address);
  const void* const shown = address;
  require(owner != reservations_.end(), kRuleBroken, shown, " is not reserved");
  require(bytes <= static_cast<size_t>(owner->first + owner->second.bytes - address), kRuleBroken, shown, " + ", bytes,
          " runs out of its reservation");
  return owner->second;
}

Reservations::Mapping& Reservations::mapped(char* address, size_t bytes) {
  Reservation& reservation = reserved(address, bytes);
  const auto found = reservation.mappings.find(address);
  const void* const shown = address;
  require(found != reservation.mappings.end() && found->second.memory->bytes == bytes, kRuleBroken, shown, " + ", bytes,
          " is not one whole mapping");
  return found->second;
}

Reservations& reservations() {
  static auto* const all = new Reservations;
  return *all;
}

}  // namespace cann
