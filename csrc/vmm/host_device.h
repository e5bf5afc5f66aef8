// The host's memory as a device: pages of a memory file, mapped into PROT_NONE reservations, so that an access outside
// of what is mapped crashes instead of reading zeros. New pages are zeroed, and their page tables filled when mapped.
#pragma once

#include <memory>

#include "arena.h"
#include "device.h"

namespace weave::vmm {

class HostDevice final : public Device {
 public:
  // Null, with last_error() set, when the system refuses what is needed.
  static std::unique_ptr<HostDevice> open();

  const char* name() const override { return "host"; }
  std::size_t granularity() const override { return kPageBytes; }
  Status reserve(std::size_t bytes, Address* out) override;
  Status release(Address base, std::size_t bytes) override;
  Status create(NewPage* out) override;
  Status destroy(Handle handle) override;
  Status map(Address address, Handle handle) override;
  Status unmap(Address address) override;
  Status synchronize() override { return Status::kOk; }  // CPU kernels have finished when they return

 private:
  static constexpr std::size_t kPageBytes = std::size_t{2} << 20;

  HostDevice() : arena_(kPageBytes) {}

  Arena arena_;
};

}  // namespace weave::vmm
