#include "device.h"

#include <unistd.h>

#include <deque>

#include "call.h"
#include "settings.h"

namespace cann {
namespace {

constexpr int32_t kNoDevice = -1;
thread_local int32_t current_id = kNoDevice;

// Devices live as long as the process: stream threads may still use them while it ends.
std::deque<Device>& devices() {
  static auto* const all = [] {
    auto* made = new std::deque<Device>;
    for (int32_t id = 0; id < settings().devices; ++id) made->emplace_back(id);
    return made;
  }();
  return *all;
}

// There is one context a device, the primary one, and its handle is the device's address.
aclrtContext context_of(Device& device) { return &device; }

Device& device_of_context(aclrtContext context) {
  for (Device& device : devices())
    if (context_of(device) == context) return device;
  throw Refusal(kRuleBroken, text(context, " is not a context"));
}

}  // namespace

void Device::take(size_t bytes) {
  std::lock_guard lock(mutex_);
  require(bytes <= settings().memory_bytes - used_bytes_, kOutOfMemory, "device ", id, " has ",
          settings().memory_bytes - used_bytes_, " of ", settings().memory_bytes, " bytes free, asked for ", bytes);
  used_bytes_ += bytes;
}

void Device::give_back(size_t bytes) {
  std::lock_guard lock(mutex_);
  used_bytes_ -= bytes;
}

size_t Device::free_bytes() const {
  std::lock_guard lock(mutex_);
  return settings().memory_bytes - used_bytes_;
}

void Device::require_healthy() const {
  require(!faulted_, kDeviceFault, "device ", id, " has faulted earlier in this process");
}

void Device::enable_peer(int32_t peer) {
  std::lock_guard lock(mutex_);
  peers_.insert(peer);
}

bool Device::reaches(int32_t peer) {
  std::lock_guard lock(mutex_);
  return peer == id || peers_.contains(peer);
}

Device& device(int64_t id) {
  require(0 <= id && id < settings().devices, ACL_ERROR_RT_INVALID_DEVICEID, "no device ", id, ", there are ",
          settings().devices);
  return devices()[static_cast<size_t>(id)];
}

Device& current_device() {
  require(current_id != kNoDevice, ACL_ERROR_RT_CONTEXT_NULL, "this thread has set no device");
  return devices()[static_cast<size_t>(current_id)];
}

}  // namespace cann

using cann::answer;
using cann::current_device;
using cann::device;
using cann::kBadArgument;
using cann::require;

EMULATED aclError aclInit(const char*) {
  return answer([] { cann::settings(); });
}

EMULATED aclError aclFinalize() {
  return answer([] {});
}

EMULATED aclError aclrtGetDeviceCount(uint32_t* count) {
  return answer([=] {
    require(count, kBadArgument, "count is null");
    *count = static_cast<uint32_t>(cann::settings().devices);
  });
}

EMULATED aclError aclrtSetDevice(int32_t id) {
  return answer([=] { cann::current_id = device(id).id; });
}

EMULATED aclError aclrtResetDevice(int32_t id) {
  return answer([=] {
    device(id);
    if (cann::current_id == id) cann::current_id = cann::kNoDevice;
  });
}

EMULATED aclError aclrtGetDevice(int32_t* id) {
  return answer([=] {
    require(id, kBadArgument, "deviceId is null");
    *id = current_device().id;
  });
}

EMULATED aclError aclrtGetCurrentContext(aclrtContext* context) {
  return answer([=] {
    require(context, kBadArgument, "context is null");
    *context = nullptr;
    *context = cann::context_of(current_device());
  });
}

EMULATED aclError aclrtSetCurrentContext(aclrtContext context) {
  return answer([=] { cann::current_id = cann::device_of_context(context).id; });
}

EMULATED aclError aclrtGetPrimaryCtxState(int32_t id, uint32_t* flags, int32_t* active) {
  return answer([=] {
    device(id);
    require(active, kBadArgument, "active is null");
    if (flags) *flags = 0;
    *active = 1;
  });
}

EMULATED aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  return answer([=] {
    require(free && total, kBadArgument, "free or total is null");
    *free = current_device().free_bytes();
    *total = cann::settings().memory_bytes;
  });
}

EMULATED aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t id, int32_t peer) {
  return answer([=] {
    require(can, kBadArgument, "canAccessPeer is null");
    *can = device(id).id == device(peer).id ? 0 : 1;
  });
}

EMULATED aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) {
  return answer([=] {
    require(flags == 0, kBadArgument, "flags must be 0, is ", flags);
    current_device().enable_peer(device(peer).id);
  });
}

EMULATED aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  return answer([=] {
    require(pid, kBadArgument, "pid is null");
    *pid = getpid();
  });
}
