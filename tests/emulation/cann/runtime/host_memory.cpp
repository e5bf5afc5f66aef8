// Page-locked host memory. There is nothing to lock: every address of this process can be reached by its devices.
#include <cstdlib>

#include "call.h"

namespace {
constexpr size_t kPage = 4096;
}

EMULATED aclError aclrtMallocHost(void** out, size_t bytes) {
  return cann::answer([=] {
    cann::require(out && bytes, cann::kBadArgument, "hostPtr is null or size is 0");
    *out = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
    cann::require(*out, cann::kOutOfMemory, "this machine has no ", bytes, " bytes");
  });
}

EMULATED aclError aclrtFreeHost(void* base) {
  return cann::answer([=] {
    cann::require(base, cann::kBadArgument, "hostPtr is null");
    std::free(base);
  });
}
