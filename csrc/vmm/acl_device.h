// Ascend NPUs: virtual memory through libascendcl. torch_npu, or whoever else uses the device, has called aclInit.
#pragma once

#include <memory>

#include "acl_api.h"
#include "device.h"

namespace weave::vmm {

class AclDevice final : public Device {
 public:
  // Null, with last_error() set, when there is no libascendcl, or the device cannot be set.
  static std::unique_ptr<AclDevice> open(int device);

  const char* name() const override { return "npu"; }
  std::size_t granularity() const override { return page_bytes_; }
  Status reserve(std::size_t bytes, Address* out) override;
  Status release(Address base, std::size_t bytes) override;
  Status create(NewPage* out) override;
  Status destroy(Handle handle) override;
  Status map(Address address, Handle handle) override;
  Status unmap(Address address) override;
  Status synchronize() override;

 private:
  AclDevice(const acl::Api& api, int device);
  Status connect();

  template <typename Call>
  Status run(const char* name, Call call, Status shortage) const;

  const acl::Api& api_;
  const int device_;
  acl::PhysicalProperties properties_{};
  std::size_t page_bytes_ = 0;
};

}  // namespace weave::vmm
