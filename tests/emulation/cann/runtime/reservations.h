// Reserved address space and what is mapped into it, by the documented rules and no laxer.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "acl/acl.h"
#include "physical_memory.h"
#include "place.h"

namespace cann {

class Reservations {
 public:
  // `bytes`, rounded up to 2 MiB, of address space from a multiple of 2 MiB on, with nothing under it.
  void* reserve(size_t bytes);

  // Refuses while anything is mapped.
  void release(void* base);

  // Maps all of `memory` at `address`, readable and writable by its device. Refuses an address that is not a multiple
  // of 2 MiB, not reserved or taken, memory that is mapped elsewhere, and a reservation that holds memory of another
  // device or of the other origin (own, imported).
  void map(void* address, size_t bytes, const std::shared_ptr<PhysicalMemory>& memory);

  // Ends the mapping that begins at `address`, whole.
  void unmap(void* address);

  // Grants a further device access to one whole mapping. A grant once made cannot be changed.
  void grant(void* address, size_t bytes, const aclrtMemAccessDesc& access);
  aclrtMemAccessFlags access(void* address, int32_t device);

  // The place of a range that begins in a reservation.
  std::optional<Place> find(const void* address, size_t bytes);

 private:
  struct Mapping {
    std::shared_ptr<PhysicalMemory> memory;
    std::map<int32_t, aclrtMemAccessFlags> access;
  };
  struct Reservation {
    size_t bytes;
    std::map<char*, Mapping> mappings;
  };

  std::map<char*, Reservation>::iterator around(const char* address);
  Reservation& reserved(const char* address, size_t bytes);
  Mapping& mapped(char* address, size_t bytes);

  std::mutex mutex_;
  std::map<char*, Reservation> reservations_;
};

Reservations& reservations();

}  // namespace cann
