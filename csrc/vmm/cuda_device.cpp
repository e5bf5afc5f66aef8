#include "cuda_device.h"

#include <string>

#include "library.h"

namespace weave::vmm {
namespace {

struct Loaded {
  cuda::Api api{};
  std::string missing;
};

const Loaded& libcuda() {
  static const Loaded loaded = [] {
    Loaded found;
    cuda::Api& api = found.api;
    Library library("libcuda.so.1");
    library.find("cuInit", &api.init)
        .find("cuDeviceGet", &api.device_get)
        .find("cuDeviceGetAttribute", &api.device_get_attribute)
        .find("cuDevicePrimaryCtxRetain", &api.primary_context_retain)
        .find("cuDevicePrimaryCtxRelease_v2", &api.primary_context_release)
        .find("cuCtxPushCurrent_v2", &api.context_push)
        .find("cuCtxPopCurrent_v2", &api.context_pop)
        .find("cuCtxSynchronize", &api.context_synchronize)
        .find("cuMemGetAllocationGranularity", &api.get_granularity)
        .find("cuMemAddressReserve", &api.address_reserve)
        .find("cuMemAddressFree", &api.address_free)
        .find("cuMemCreate", &api.create)
        .find("cuMemRelease", &api.release)
        .find("cuMemMap", &api.map)
        .find("cuMemSetAccess", &api.set_access)
        .find("cuMemUnmap", &api.unmap)
        .find("cuGetErrorString", &api.get_error_string);
    found.missing = library.missing();
    return found;
  }();
  return loaded;
}

Status status_of(const cuda::Api& api, cuda::Result result, const char* call, Status shortage = Status::kOutOfMemory) {
  if (result == cuda::kSuccess) return Status::kOk;
  const char* text = nullptr;
  if (api.get_error_string(result, &text) != cuda::kSuccess || text == nullptr) text = "unknown error";
  return fail(result == cuda::kErrorOutOfMemory ? shortage : Status::kFailed, "%s: %s (%d)", call, text, result);
}

// Makes a context current for one call and puts back what was current before, so that torch's view of the device of
// this thread does not change.
class CurrentContext {
 public:
  CurrentContext(const cuda::Api& api, cuda::Context context) : api_(api), result_(api.context_push(context)) {}
  ~CurrentContext() {
    cuda::Context ours = nullptr;
    if (result_ == cuda::kSuccess) api_.context_pop(&ours);
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  template <typename Call>
  cuda::Result run(Call call) const {
    return result_ == cuda::kSuccess ? call() : result_;
  }

 private:
  const cuda::Api& api_;
  const cuda::Result result_;
};

}  // namespace

CudaDevice::CudaDevice(const cuda::Api& api, int ordinal) : api_(api), ordinal_(ordinal) {}

std::unique_ptr<CudaDevice> CudaDevice::open(int ordinal) {
  const Loaded& loaded = libcuda();
  if (!loaded.missing.empty()) {
    fail(Status::kFailed, "%s", loaded.missing.c_str());
    return nullptr;
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice(loaded.api, ordinal));
  if (device->connect() != Status::kOk) return nullptr;
  return device;
}

Status CudaDevice::connect() {
  Status status = status_of(api_, api_.init(0), "cuInit");
  if (status == Status::kOk) status = status_of(api_, api_.device_get(&device_, ordinal_), "cuDeviceGet");
  if (status != Status::kOk) return status;
  int supported = 0;
  status = status_of(api_, api_.device_get_attribute(&supported, cuda::kAttributeVirtualMemory, device_),
                     "cuDeviceGetAttribute");
  if (status != Status::kOk) return status;
  if (supported == 0) return fail(Status::kFailed, "device %d has no virtual memory management", ordinal_);
  properties_.type = cuda::kAllocationPinned;
  properties_.location = {cuda::kLocationDevice, device_};
  status = status_of(api_, api_.get_granularity(&page_bytes_, &properties_, cuda::kGranularityMinimum),
                     "cuMemGetAllocationGranularity");
  if (status != Status::kOk) return status;
  return status_of(api_, api_.primary_context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

CudaDevice::~CudaDevice() {
  if (context_ != nullptr) api_.primary_context_release(device_);
}

Status CudaDevice::reserve(std::size_t bytes, Address* out) {
  const CurrentContext current(api_, context_);
  cuda::DevicePointer base = 0;
  const auto result = current.run([&] { return api_.address_reserve(&base, bytes, page_bytes_, 0, 0); });
  *out = static_cast<Address>(base);
  return status_of(api_, result, "cuMemAddressReserve", Status::kOutOfAddressSpace);
}

Status CudaDevice::release(Address base, std::size_t bytes) {
  const CurrentContext current(api_, context_);
  return status_of(api_, current.run([&] { return api_.address_free(base, bytes); }), "cuMemAddressFree");
}

Status CudaDevice::create(NewPage* out) {
  const CurrentContext current(api_, context_);
  cuda::MemoryHandle handle = 0;
  const auto result = current.run([&] { return api_.create(&handle, page_bytes_, &properties_, 0); });
  out->handle = handle;
  return status_of(api_, result, "cuMemCreate");
}

Status CudaDevice::destroy(Handle handle) {
  const CurrentContext current(api_, context_);
  return status_of(api_, current.run([&] { return api_.release(handle); }), "cuMemRelease");
}

// A mapping is not accessible until access is granted; without the grant there is to be no mapping either.
Status CudaDevice::map(Address address, Handle handle) {
  const CurrentContext current(api_, context_);
  auto result = current.run([&] { return api_.map(address, page_bytes_, 0, handle, 0); });
  if (result != cuda::kSuccess) return status_of(api_, result, "cuMemMap");
  const cuda::AccessDescriptor access{properties_.location, cuda::kAccessReadWrite};
  result = api_.set_access(address, page_bytes_, &access, 1);
  if (result != cuda::kSuccess) api_.unmap(address, page_bytes_);
  return status_of(api_, result, "cuMemSetAccess");
}

Status CudaDevice::unmap(Address address) {
  const CurrentContext current(api_, context_);
  return status_of(api_, current.run([&] { return api_.unmap(address, page_bytes_); }), "cuMemUnmap");
}

Status CudaDevice::synchronize() {
  const CurrentContext current(api_, context_);
  return status_of(api_, current.run([&] { return api_.context_synchronize(); }), "cuCtxSynchronize");
}

}  // namespace weave::vmm
