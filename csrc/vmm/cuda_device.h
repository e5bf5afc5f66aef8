// NVIDIA GPUs: virtual memory through libcuda, in the primary context of the device, which is torch's as well.
#pragma once

#include <memory>

#include "cuda_api.h"
#include "device.h"

namespace weave::vmm {

class CudaDevice final : public Device {
 public:
  // Null, with last_error() set, when there is no libcuda, no such device, or it cannot manage virtual memory.
  static std::unique_ptr<CudaDevice> open(int ordinal);
  ~CudaDevice() override;

  const char* name() const override { return "cuda"; }
  std::size_t granularity() const override { return page_bytes_; }
  Status reserve(std::size_t bytes, Address* out) override;
  Status release(Address base, std::size_t bytes) override;
  Status create(NewPage* out) override;
  Status destroy(Handle handle) override;
  Status map(Address address, Handle handle) override;
  Status unmap(Address address) override;
  Status synchronize() override;

 private:
  CudaDevice(const cuda::Api& api, int ordinal);
  Status connect();

  const cuda::Api& api_;
  const int ordinal_;
  cuda::DeviceId device_ = 0;
  cuda::Context context_ = nullptr;
  cuda::AllocationProperties properties_{};
  std::size_t page_bytes_ = 0;
};

}  // namespace weave::vmm
