// Copying and filling memory, at once or as a stream's task.
#include <cstring>

#include "call.h"
#include "place.h"
#include "stream.h"

namespace cann {
namespace {

struct Copy {
  void* to;
  size_t most;
  const void* from;
  size_t bytes;
  aclrtMemcpyKind kind;
};

// What a kind of copy says about its two ends; unknown kinds are refused.
void check_kind(aclrtMemcpyKind kind, bool to_host, bool from_host) {
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_HOST:
      return require(to_host && from_host, kRuleBroken, "host to host, but an end is device memory");
    case ACL_MEMCPY_HOST_TO_DEVICE:
      return require(!to_host && from_host, kRuleBroken, "host to device, but the ends are not so");
    case ACL_MEMCPY_DEVICE_TO_HOST:
      return require(to_host && !from_host, kRuleBroken, "device to host, but the ends are not so");
    case ACL_MEMCPY_DEVICE_TO_DEVICE:
    case ACL_MEMCPY_INNER_DEVICE_TO_DEVICE:
    case ACL_MEMCPY_INTER_DEVICE_TO_DEVICE:
      return require(!to_host && !from_host, kRuleBroken, "device to device, but an end is host memory");
    case ACL_MEMCPY_DEFAULT:
      return;
    default:
      throw Refusal(kBadArgument, text("kind ", kind, " is not emulated"));
  }
}

void check(const Copy& copy) {
  require(copy.to && copy.from, kBadArgument, "dst or src is null");
  require(copy.bytes <= copy.most, kBadArgument, "count ", copy.bytes, " is over destMax ", copy.most);
  const Place to = place_of(copy.to, copy.bytes);
  const Place from = place_of(copy.from, copy.bytes);
  check_kind(copy.kind, to.on_host(), from.on_host());
  if (to.kind != Place::Kind::kDevice || from.kind != Place::Kind::kDevice) return;
  const bool reachable = device(to.device).reaches(from.device) || device(from.device).reaches(to.device);
  require(reachable, kRuleBroken, "devices ", from.device, " and ", to.device, " have no peer access");
}

void require_backed(const void* address, size_t bytes) {
  require(place_of(address, bytes).backed(), kRuleBroken, address, " + ", bytes, " has no memory under it");
}

void check_fill(const void* to, size_t most, size_t bytes) {
  require(to, kBadArgument, "devPtr is null");
  require(bytes <= most, kBadArgument, "count ", bytes, " is over maxCount ", most);
}

}  // namespace
}  // namespace cann

using cann::answer;
using cann::Copy;

EMULATED aclError aclrtMemcpy(void* to, size_t most, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  return answer([=] {
    cann::check(Copy{to, most, from, bytes, kind});
    cann::require_backed(to, bytes);
    cann::require_backed(from, bytes);
    cann::current_device().require_healthy();
    std::memcpy(to, from, bytes);
  });
}

EMULATED aclError aclrtMemcpyAsync(void* to, size_t most, const void* from, size_t bytes, aclrtMemcpyKind kind,
                                   aclrtStream stream) {
  return answer([=] {
    cann::check(Copy{to, most, from, bytes, kind});
    cann::stream_of(stream)->push([=] { std::memcpy(to, from, bytes); });
  });
}

EMULATED aclError aclrtMemset(void* to, size_t most, int32_t value, size_t bytes) {
  return answer([=] {
    cann::check_fill(to, most, bytes);
    cann::require_backed(to, bytes);
    cann::current_device().require_healthy();
    std::memset(to, value, bytes);
  });
}

EMULATED aclError aclrtMemsetAsync(void* to, size_t most, int32_t value, size_t bytes, aclrtStream stream) {
  return answer([=] {
    cann::check_fill(to, most, bytes);
    cann::stream_of(stream)->push([=] { std::memset(to, value, bytes); });
  });
}
