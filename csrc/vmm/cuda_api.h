// What we use of the CUDA driver API (libcuda), declared here so that no CUDA is needed to build. Names and layouts are
// those of "CUDA Driver API", sections Virtual Memory Management, Context Management and Primary Context Management.
#pragma once

#include <cstddef>

namespace weave::vmm::cuda {

using Result = int;
using DeviceId = int;
using Context = void*;
using DevicePointer = unsigned long long;
using MemoryHandle = unsigned long long;

inline constexpr Result kSuccess = 0;
inline constexpr Result kErrorOutOfMemory = 2;
inline constexpr int kAllocationPinned = 1;          // CU_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kLocationDevice = 1;            // CU_MEM_LOCATION_TYPE_DEVICE
inline constexpr int kAccessReadWrite = 3;           // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
inline constexpr int kGranularityMinimum = 0;        // CU_MEM_ALLOC_GRANULARITY_MINIMUM
inline constexpr int kAttributeVirtualMemory = 102;  // CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED

struct Location {
  int type;
  int id;
};

struct AllocationProperties {  // CUmemAllocationProp
  int type;
  int requested_handle_types;
  Location location;
  void* win32_handle_metadata;
  struct {
    unsigned char compression_type;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};

struct AccessDescriptor {  // CUmemAccessDesc
  Location location;
  int flags;
};

static_assert(sizeof(AllocationProperties) == 32 && sizeof(AccessDescriptor) == 12);

struct Api {
  Result (*init)(unsigned flags);
  Result (*device_get)(DeviceId* device, int ordinal);
  Result (*device_get_attribute)(int* value, int attribute, DeviceId device);
  Result (*primary_context_retain)(Context* context, DeviceId device);
  Result (*primary_context_release)(DeviceId device);
  Result (*context_push)(Context context);
  Result (*context_pop)(Context* context);
  Result (*context_synchronize)();
  Result (*get_granularity)(std::size_t* bytes, const AllocationProperties* properties, int option);
  Result (*address_reserve)(DevicePointer* out, std::size_t bytes, std::size_t alignment, DevicePointer wanted,
                            unsigned long long flags);
  Result (*address_free)(DevicePointer base, std::size_t bytes);
  Result (*create)(MemoryHandle* out, std::size_t bytes, const AllocationProperties* properties,
                   unsigned long long flags);
  Result (*release)(MemoryHandle handle);
  Result (*map)(DevicePointer address, std::size_t bytes, std::size_t offset, MemoryHandle handle,
                unsigned long long flags);
  Result (*set_access)(DevicePointer address, std::size_t bytes, const AccessDescriptor* descriptors,
                       std::size_t count);
  Result (*unmap)(DevicePointer address, std::size_t bytes);
  Result (*get_error_string)(Result error, const char** text);
};

}  // namespace weave::vmm::cuda
