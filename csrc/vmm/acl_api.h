// What we use of the Ascend runtime (libascendcl), declared here so that no CANN is needed to build. Names and layouts
// are those of acl/acl_rt.h; the Ascend tests compile both side by side and compare them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weave::vmm::acl {

using Error = int;
using Context = void*;
using MemoryHandle = void*;  // aclrtDrvMemHandle

inline constexpr Error kSuccess = 0;
inline constexpr Error kErrorMemoryAllocation = 207001;   // ACL_ERROR_RT_MEMORY_ALLOCATION
inline constexpr Error kErrorStorageAllocation = 200000;  // ACL_ERROR_BAD_ALLOC
inline constexpr int kHandleTypeNone = 0;                 // ACL_MEM_HANDLE_TYPE_NONE
inline constexpr int kAllocationPinned = 0;               // ACL_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kMemoryHbmHuge = 4;                  // ACL_HBM_MEM_HUGE, pages of 2 MiB
inline constexpr int kLocationDevice = 1;                 // ACL_MEM_LOCATION_TYPE_DEVICE
inline constexpr int kGranularityMinimum = 0;             // ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM

struct Location {  // aclrtMemLocation
  std::uint32_t id;
  int type;
};

struct PhysicalProperties {  // aclrtPhysicalMemProp
  int handle_type;
  int allocation_type;
  int memory_attribute;
  Location location;
  std::uint64_t reserve;
};

static_assert(sizeof(PhysicalProperties) == 32);

struct Api {
  Error (*set_device)(std::int32_t device);
  Error (*get_current_context)(Context* context);
  Error (*set_current_context)(Context context);
  Error (*synchronize_device)();
  Error (*get_granularity)(const PhysicalProperties* properties, int option, std::size_t* bytes);
  Error (*reserve_address)(void** out, std::size_t bytes, std::size_t alignment, void* wanted, std::uint64_t flags);
  Error (*release_address)(void* base);
  Error (*malloc_physical)(MemoryHandle* out, std::size_t bytes, const PhysicalProperties* properties,
                           std::uint64_t flags);
  Error (*free_physical)(MemoryHandle handle);
  Error (*map)(void* address, std::size_t bytes, std::size_t offset, MemoryHandle handle, std::uint64_t flags);
  Error (*unmap)(void* address);
  const char* (*recent_error)();
};

}  // namespace weave::vmm::acl
