// The calls on reserved address space: what they check of their arguments; the rules are in reservations.h.
#include "call.h"
#include "reservations.h"

using cann::answer;
using cann::kBadArgument;
using cann::physical_handles;
using cann::require;
using cann::reservations;

EMULATED aclError aclrtReserveMemAddress(void** out, size_t bytes, size_t alignment, void* expected, uint64_t flags) {
  return answer([=] {
    require(out && bytes, kBadArgument, "virPtr is null or size is 0");
    require(alignment == 0, kBadArgument, "alignment must be 0, is ", alignment);
    require(!expected, kBadArgument, "expectPtr must be null; a fixed address is not emulated");
    require(flags <= 1, kBadArgument, "flags must be 0 or 1, is ", flags);
    *out = reservations().reserve(bytes);
  });
}

EMULATED aclError aclrtReleaseMemAddress(void* base) {
  return answer([=] {
    require(base, kBadArgument, "virPtr is null");
    reservations().release(base);
  });
}

EMULATED aclError aclrtMapMem(void* address, size_t bytes, size_t offset, aclrtDrvMemHandle handle, uint64_t flags) {
  return answer([=] {
    require(address && bytes && handle, kBadArgument, "virPtr or handle is null, or size is 0");
    require(offset == 0, kBadArgument, "offset must be 0, is ", offset);
    require(flags == 0, kBadArgument, "flags must be 0, is ", flags);
    reservations().map(address, bytes, physical_handles().get(handle));
  });
}

EMULATED aclError aclrtUnmapMem(void* address) {
  return answer([=] {
    require(address, kBadArgument, "virPtr is null");
    reservations().unmap(address);
  });
}

EMULATED aclError aclrtMemSetAccess(void* address, size_t bytes, aclrtMemAccessDesc* accesses, size_t count) {
  return answer([=] {
    require(address && bytes && accesses && count, kBadArgument, "virPtr or desc is null, or size or count is 0");
    for (const aclrtMemAccessDesc* access = accesses; access != accesses + count; ++access) {
      require(access->location.type == ACL_MEM_LOCATION_TYPE_DEVICE, kBadArgument, "location.type must be DEVICE");
      reservations().grant(address, bytes, *access);
    }
  });
}

EMULATED aclError aclrtMemGetAccess(void* address, aclrtMemLocation* location, uint64_t* flags) {
  return answer([=] {
    require(address && location && flags, kBadArgument, "virPtr, location or flag is null");
    require(location->type == ACL_MEM_LOCATION_TYPE_DEVICE, kBadArgument, "location.type must be DEVICE");
    *flags = reservations().access(address, cann::device(location->id).id);
  });
}
