#include "place.h"

#include "allocations.h"
#include "reservations.h"

namespace cann {

Place place_of(const void* address, size_t bytes) {
  if (const auto place = allocations().find(address, bytes)) return *place;
  if (const auto place = reservations().find(address, bytes)) return *place;
  return {Place::Kind::kHost, -1};
}

}  // namespace cann
