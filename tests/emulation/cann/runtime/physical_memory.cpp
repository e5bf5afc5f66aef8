#include "physical_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include "call.h"
#include "pages.h"

namespace cann {
namespace {

int memory_file(size_t bytes) {
  const int file = memfd_create("emulated-cann", MFD_CLOEXEC);
  require(file >= 0, kOutOfMemory, "this machine gives no file in memory");
  if (ftruncate(file, static_cast<off_t>(bytes)) == 0) return file;
  close(file);
  throw Refusal(kOutOfMemory, text("this machine gives no file of ", bytes, " bytes"));
}

}  // namespace

std::shared_ptr<PhysicalMemory> PhysicalMemory::create(Device& device, size_t bytes) {
  device.take(bytes);
  try {
    return std::shared_ptr<PhysicalMemory>(new PhysicalMemory(device, bytes, memory_file(bytes), false));
  } catch (const Refusal&) {
    device.give_back(bytes);
    throw;
  }
}

std::shared_ptr<PhysicalMemory> PhysicalMemory::adopt(Device& device, size_t bytes, int file) {
  return std::shared_ptr<PhysicalMemory>(new PhysicalMemory(device, bytes, file, true));
}

PhysicalMemory::~PhysicalMemory() {
  close(file);
  if (!imported) device.give_back(bytes);
}

Handles<PhysicalMemory>& physical_handles() {
  static auto* const all = new Handles<PhysicalMemory>("handle of physical memory");
  return *all;
}

size_t granularity_of(const aclrtPhysicalMemProp& properties) {
  require(properties.handleType == ACL_MEM_HANDLE_TYPE_NONE, kBadArgument, "handleType must be NONE");
  require(properties.allocationType == ACL_MEM_ALLOCATION_TYPE_PINNED, kBadArgument, "allocationType must be PINNED");
  require(properties.location.type == ACL_MEM_LOCATION_TYPE_DEVICE, kBadArgument, "location.type must be DEVICE");
  require(properties.reserve == 0, kBadArgument, "reserve must be 0");
  device(properties.location.id);
  switch (properties.memAttr) {
    case ACL_HBM_MEM_HUGE:
    case ACL_HBM_MEM_NORMAL:  // documented to be promoted to HUGE
    case ACL_HBM_MEM_P2P_HUGE:
    case ACL_HBM_MEM_P2P_NORMAL:
    case ACL_MEM_HUGE:
    case ACL_MEM_NORMAL:
    case ACL_MEM_P2P_HUGE:
    case ACL_MEM_P2P_NORMAL:
      return kHugePage;
    case ACL_HBM_MEM_HUGE1G:
    case ACL_HBM_MEM_P2P_HUGE1G:
    case ACL_MEM_HUGE1G:
    case ACL_MEM_P2P_HUGE1G:
      return kGiantPage;
    default:
      throw Refusal(kBadArgument, text("memAttr ", properties.memAttr, " is not emulated"));
  }
}

}  // namespace cann

using cann::answer;
using cann::kBadArgument;
using cann::require;

EMULATED aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp* properties, aclrtMemGranularityOptions option,
                                                   size_t* granularity) {
  return answer([=] {
    require(properties && granularity, kBadArgument, "prop or granularity is null");
    require(option == ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM || option == ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED,
            kBadArgument, "option ", option, " is neither MINIMUM nor RECOMMENDED");
    *granularity = cann::granularity_of(*properties);
  });
}

EMULATED aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp* properties,
                                      uint64_t flags) {
  return answer([=] {
    require(handle && properties && bytes, kBadArgument, "handle or prop is null, or size is 0");
    require(flags == 0, kBadArgument, "flags must be 0, is ", flags);
    const size_t unit = cann::granularity_of(*properties);
    require(bytes % unit == 0, cann::kRuleBroken, "size ", bytes, " is no multiple of ", unit);
    *handle = cann::physical_handles().add(cann::PhysicalMemory::create(cann::device(properties->location.id), bytes));
  });
}

EMULATED aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  return answer([=] { cann::physical_handles().remove(handle); });
}
