#include "host_device.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstring>

#include "address_space.h"

namespace weave::vmm {
namespace {

Status status_of(int error) {
  if (error == 0) return Status::kOk;
  return fail(error == ENOMEM || error == ENOSPC ? Status::kOutOfMemory : Status::kFailed, "%s", std::strerror(error));
}

}  // namespace

std::unique_ptr<HostDevice> HostDevice::open() {
  std::unique_ptr<HostDevice> device(new HostDevice());
  if (const int error = device->arena_.open()) {
    fail(Status::kFailed, "no memory file: %s", std::strerror(error));
    return nullptr;
  }
  return device;
}

Status HostDevice::reserve(std::size_t bytes, Address* out) {
  void* base = nullptr;
  if (const int error = reserve_aligned(bytes, kPageBytes, &base)) {
    return fail(Status::kOutOfAddressSpace, "%s", std::strerror(error));
  }
  *out = reinterpret_cast<Address>(base);
  return Status::kOk;
}

Status HostDevice::release(Address base, std::size_t bytes) {
  if (munmap(reinterpret_cast<void*>(base), bytes) == 0) return Status::kOk;
  const int error = errno;
  return fail(Status::kFailed, "%s", std::strerror(error));
}

Status HostDevice::create(NewPage* out) {
  std::size_t index = 0;
  const Status status = status_of(arena_.commit(&index, &out->huge));
  out->handle = index;
  out->order = static_cast<std::uint32_t>(index);
  return status;
}

Status HostDevice::destroy(Handle handle) { return status_of(arena_.discard(handle)); }

Status HostDevice::map(Address address, Handle handle) {
  return status_of(arena_.map(reinterpret_cast<void*>(address), handle));
}

Status HostDevice::unmap(Address address) { return status_of(make_hole(reinterpret_cast<void*>(address), kPageBytes)); }

}  // namespace weave::vmm
