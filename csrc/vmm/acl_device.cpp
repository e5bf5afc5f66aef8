#include "acl_device.h"

#include <string>

#include "library.h"

namespace weave::vmm {
namespace {

constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
constexpr std::size_t kMaxReservationBytes = std::size_t{128} << 30;  // of 910B and 910C

struct Loaded {
  acl::Api api{};
  std::string missing;
};

const Loaded& libascendcl() {
  static const Loaded loaded = [] {
    Loaded found;
    acl::Api& api = found.api;
    Library library("libascendcl.so");
    library.find("aclrtSetDevice", &api.set_device)
        .find("aclrtGetCurrentContext", &api.get_current_context)
        .find("aclrtSetCurrentContext", &api.set_current_context)
        .find("aclrtSynchronizeDevice", &api.synchronize_device)
        .find("aclrtMemGetAllocationGranularity", &api.get_granularity)
        .find("aclrtReserveMemAddress", &api.reserve_address)
        .find("aclrtReleaseMemAddress", &api.release_address)
        .find("aclrtMallocPhysical", &api.malloc_physical)
        .find("aclrtFreePhysical", &api.free_physical)
        .find("aclrtMapMem", &api.map)
        .find("aclrtUnmapMem", &api.unmap)
        .find("aclGetRecentErrMsg", &api.recent_error);
    found.missing = library.missing();
    return found;
  }();
  return loaded;
}

}  // namespace

AclDevice::AclDevice(const acl::Api& api, int device) : api_(api), device_(device) {}

std::unique_ptr<AclDevice> AclDevice::open(int device) {
  const Loaded& loaded = libascendcl();
  if (!loaded.missing.empty()) {
    fail(Status::kFailed, "%s", loaded.missing.c_str());
    return nullptr;
  }
  std::unique_ptr<AclDevice> opened(new AclDevice(loaded.api, device));
  if (opened->connect() != Status::kOk) return nullptr;
  return opened;
}

// Runs a call with our device current in this thread, and puts back the context that was: torch_npu keeps its own idea
// of the current device.
template <typename Call>
Status AclDevice::run(const char* name, Call call, Status shortage) const {
  acl::Context before = nullptr;
  if (api_.get_current_context(&before) != acl::kSuccess) before = nullptr;
  acl::Error error = api_.set_device(device_);
  if (error == acl::kSuccess) error = call();
  if (before != nullptr) api_.set_current_context(before);
  if (error == acl::kSuccess) return Status::kOk;
  const bool is_short = error == acl::kErrorMemoryAllocation || error == acl::kErrorStorageAllocation;
  const char* text = api_.recent_error();
  return fail(is_short ? shortage : Status::kFailed, "%s: error %d %.400s", name, error, text == nullptr ? "" : text);
}

Status AclDevice::connect() {
  properties_.handle_type = acl::kHandleTypeNone;
  properties_.allocation_type = acl::kAllocationPinned;
  properties_.memory_attribute = acl::kMemoryHbmHuge;
  properties_.location = {static_cast<std::uint32_t>(device_), acl::kLocationDevice};
  // Some 910B stacks refuse the question (vllm-ascend issue 2171); huge pages of HBM are 2 MiB on all of them.
  const Status asked = run(
      "aclrtMemGetAllocationGranularity",
      [this] { return api_.get_granularity(&properties_, acl::kGranularityMinimum, &page_bytes_); }, Status::kFailed);
  if (asked != Status::kOk || page_bytes_ == 0) page_bytes_ = kHugePageBytes;
  return run("aclrtSetDevice", [] { return acl::kSuccess; }, Status::kFailed);
}

// The alignment has to be 0; addresses come as the device's pages need them, which `Driver` checks.
Status AclDevice::reserve(std::size_t bytes, Address* out) {
  if (bytes > kMaxReservationBytes) {
    return fail(Status::kOutOfAddressSpace, "%zu bytes, and a reservation has at most %zu", bytes,
                kMaxReservationBytes);
  }
  void* base = nullptr;
  const Status status = run(
      "aclrtReserveMemAddress", [&] { return api_.reserve_address(&base, bytes, 0, nullptr, 0); },
      Status::kOutOfAddressSpace);
  *out = reinterpret_cast<Address>(base);
  return status;
}

Status AclDevice::release(Address base, std::size_t) {
  return run(
      "aclrtReleaseMemAddress", [&] { return api_.release_address(reinterpret_cast<void*>(base)); }, Status::kFailed);
}

Status AclDevice::create(NewPage* out) {
  acl::MemoryHandle handle = nullptr;
  const Status status = run(
      "aclrtMallocPhysical", [&] { return api_.malloc_physical(&handle, page_bytes_, &properties_, 0); },
      Status::kOutOfMemory);
  out->handle = reinterpret_cast<Handle>(handle);
  return status;
}

Status AclDevice::destroy(Handle handle) {
  return run(
      "aclrtFreePhysical", [&] { return api_.free_physical(reinterpret_cast<acl::MemoryHandle>(handle)); },
      Status::kFailed);
}

// The device that owns the memory may read and write it at once: there is no access to grant.
Status AclDevice::map(Address address, Handle handle) {
  return run(
      "aclrtMapMem",
      [&] {
        return api_.map(reinterpret_cast<void*>(address), page_bytes_, 0, reinterpret_cast<acl::MemoryHandle>(handle),
                        0);
      },
      Status::kOutOfMemory);
}

Status AclDevice::unmap(Address address) {
  return run("aclrtUnmapMem", [&] { return api_.unmap(reinterpret_cast<void*>(address)); }, Status::kFailed);
}

Status AclDevice::synchronize() {
  return run("aclrtSynchronizeDevice", [this] { return api_.synchronize_device(); }, Status::kFailed);
}

}  // namespace weave::vmm
