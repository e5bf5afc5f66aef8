// An emulated libcuda: contexts and virtual memory of the CUDA driver API, over memory of this process.
//
// It is as strict as NVIDIA's documentation is: a call needs a current context; a handle is mapped whole, at offset 0;
// memory is accessible only after access was granted; unmapping takes whole mappings; address space is freed as it was
// reserved, and empty; memory lives until its handle is released and its last mapping is gone. New memory holds
// rubbish, as nothing promises otherwise. What is not here is not exported: opening it fails by name.
//
// EMULATED_CUDA_BYTES is the memory of a device (default 4 GiB), EMULATED_CUDA_DEVICES their number (default 2).
// emulated_cuda_fail(call, n) lets the n-th call of that name from now on fail; emulated_cuda_live() counts what is
// held.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kUnknown = 999
};

constexpr std::size_t kPage = std::size_t{2} << 20;
constexpr unsigned char kRubbish = 0xA5;
constexpr int kPinned = 1, kDeviceLocation = 1, kReadOnly = 1, kReadWrite = 3, kVirtualMemoryAttribute = 102;

using Address = std::uintptr_t;
using Pointer = unsigned long long;
using Handle = unsigned long long;

struct Location {
  int type, id;
};
struct Properties {
  int type, handle_types;
  Location location;
  void* metadata;
  unsigned char flags[8];
};
struct Access {
  Location location;
  int flags;
};
struct Memory {
  int file, device;
  std::size_t bytes;
  int mappings;
  bool released;
};
struct Mapping {
  std::size_t bytes;
  Handle handle;
};

std::mutex mutex;
std::map<Handle, Memory> memories;
std::map<Address, std::size_t> reservations;
std::map<Address, Mapping> mappings;
std::map<std::string, unsigned> failures;  // call -> how many more calls until one fails
Handle last_handle = 0;
thread_local std::vector<void*> contexts;

std::size_t setting(const char* name, std::size_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

int devices() { return static_cast<int>(setting("EMULATED_CUDA_DEVICES", 2)); }

std::size_t used_bytes(int device) {
  std::size_t bytes = 0;
  for (const auto& [handle, memory] : memories) bytes += memory.device == device ? memory.bytes : 0;
  return bytes;
}

// One entry to every call: counts down injected failures, and asks for a context.
int enter(const char* call, bool needs_context = true) {
  const auto found = failures.find(call);
  if (found != failures.end() && --found->second == 0) {
    failures.erase(found);
    return std::strcmp(call, "cuMemCreate") == 0 || std::strcmp(call, "cuMemAddressReserve") == 0 ? kOutOfMemory
                                                                                                  : kUnknown;
  }
  return needs_context && contexts.empty() ? kInvalidContext : kSuccess;
}

bool valid(const Properties* properties) {
  return properties != nullptr && properties->type == kPinned && properties->location.type == kDeviceLocation &&
         properties->location.id >= 0 && properties->location.id < devices();
}

bool inside_one_reservation(Address address, std::size_t bytes) {
  auto after = reservations.upper_bound(address);
  if (after == reservations.begin()) return false;
  const auto& [base, size] = *std::prev(after);
  return address - base < size && bytes <= size - (address - base);
}

bool overlaps_a_mapping(Address address, std::size_t bytes) {
  for (const auto& [start, mapping] : mappings) {
    if (address < start + mapping.bytes && start < address + bytes) return true;
  }
  return false;
}

// Whether [address, address + bytes) is covered by whole mappings, one after the other.
bool whole_mappings(Address address, std::size_t bytes) {
  const Address end = address + bytes;
  while (address < end) {
    const auto found = mappings.find(address);
    if (found == mappings.end()) return false;
    address += found->second.bytes;
  }
  return address == end;
}

void free_when_unused(Handle handle) {
  const auto found = memories.find(handle);
  if (!found->second.released || found->second.mappings > 0) return;
  close(found->second.file);
  memories.erase(found);
}

bool fill_with_rubbish(int file, std::size_t bytes) {
  void* window = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (window == MAP_FAILED) return false;
  std::memset(window, kRubbish, bytes);
  munmap(window, bytes);
  return true;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))
#define ENTER(call, ...)                         \
  const std::lock_guard<std::mutex> lock(mutex); \
  if (const int refused = enter(#call __VA_OPT__(, ) __VA_ARGS__)) return refused

API int cuInit(unsigned flags) {
  ENTER(cuInit, false);
  return flags == 0 ? kSuccess : kInvalidValue;
}

API int cuGetErrorString(int error, const char** text) {
  static const std::map<int, const char*> texts = {{kInvalidValue, "invalid argument"},
                                                   {kOutOfMemory, "out of memory"},
                                                   {kInvalidDevice, "invalid device ordinal"},
                                                   {kInvalidContext, "invalid device context"},
                                                   {kUnknown, "injected failure"}};
  const auto found = texts.find(error);
  if (found == texts.end()) return kInvalidValue;
  *text = found->second;
  return kSuccess;
}

API int cuDeviceGet(int* device, int ordinal) {
  ENTER(cuDeviceGet, false);
  if (ordinal < 0 || ordinal >= devices()) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

API int cuDeviceGetAttribute(int* value, int attribute, int device) {
  ENTER(cuDeviceGetAttribute, false);
  if (device < 0 || device >= devices()) return kInvalidDevice;
  if (attribute != kVirtualMemoryAttribute) return kInvalidValue;
  *value = 1;
  return kSuccess;
}

API int cuDevicePrimaryCtxRetain(void** context, int device) {
  ENTER(cuDevicePrimaryCtxRetain, false);
  *context = reinterpret_cast<void*>(static_cast<std::intptr_t>(device) + 1);
  return kSuccess;
}

API int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }

API int cuCtxPushCurrent_v2(void* context) {
  if (context == nullptr) return kInvalidContext;
  contexts.push_back(context);
  return kSuccess;
}

API int cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return kInvalidContext;
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}

API int cuCtxSynchronize() {
  ENTER(cuCtxSynchronize);
  return kSuccess;  // there are no streams here: all work is done when its call returns
}

API int cuMemGetAllocationGranularity(std::size_t* bytes, const Properties* properties, int option) {
  ENTER(cuMemGetAllocationGranularity, false);
  if (!valid(properties) || (option != 0 && option != 1)) return kInvalidValue;
  *bytes = kPage;
  return kSuccess;
}

API int cuMemAddressReserve(Pointer* out, std::size_t bytes, std::size_t alignment, Pointer wanted,
                            unsigned long long flags) {
  ENTER(cuMemAddressReserve);
  if (bytes == 0 || bytes % kPage != 0 || (alignment & (alignment - 1)) != 0 || wanted != 0 || flags != 0) {
    return kInvalidValue;
  }
  const std::size_t align = alignment < kPage ? kPage : alignment;
  void* raw = mmap(nullptr, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return kOutOfMemory;
  const Address start = reinterpret_cast<Address>(raw);
  const Address base = (start + align - 1) / align * align;
  if (base > start) munmap(raw, base - start);
  munmap(reinterpret_cast<void*>(base + bytes), start + align - base);
  reservations[base] = bytes;
  *out = base;
  return kSuccess;
}

API int cuMemAddressFree(Pointer base, std::size_t bytes) {
  ENTER(cuMemAddressFree);
  const auto found = reservations.find(base);
  if (found == reservations.end() || found->second != bytes || overlaps_a_mapping(base, bytes)) return kInvalidValue;
  munmap(reinterpret_cast<void*>(base), bytes);
  reservations.erase(found);
  return kSuccess;
}

API int cuMemCreate(Handle* out, std::size_t bytes, const Properties* properties, unsigned long long flags) {
  ENTER(cuMemCreate);
  if (bytes == 0 || bytes % kPage != 0 || flags != 0 || !valid(properties) || properties->handle_types != 0) {
    return kInvalidValue;
  }
  const int device = properties->location.id;
  if (used_bytes(device) + bytes > setting("EMULATED_CUDA_BYTES", std::size_t{4} << 30)) return kOutOfMemory;
  const int file = memfd_create("emulated-cuda", MFD_CLOEXEC);
  if (file < 0) return kOutOfMemory;
  if (ftruncate(file, static_cast<off_t>(bytes)) != 0 || !fill_with_rubbish(file, bytes)) {
    close(file);
    return kOutOfMemory;
  }
  *out = ++last_handle;
  memories[*out] = Memory{file, device, bytes, 0, false};
  return kSuccess;
}

API int cuMemRelease(Handle handle) {
  ENTER(cuMemRelease);
  const auto found = memories.find(handle);
  if (found == memories.end() || found->second.released) return kInvalidValue;
  found->second.released = true;
  free_when_unused(handle);
  return kSuccess;
}

API int cuMemMap(Pointer address, std::size_t bytes, std::size_t offset, Handle handle, unsigned long long flags) {
  ENTER(cuMemMap);
  const auto found = memories.find(handle);
  if (found == memories.end() || found->second.released || offset != 0 || flags != 0) return kInvalidValue;
  if (bytes != found->second.bytes || address % kPage != 0) return kInvalidValue;
  if (!inside_one_reservation(address, bytes) || overlaps_a_mapping(address, bytes)) return kInvalidValue;
  void* at = reinterpret_cast<void*>(address);
  if (mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second.file, 0) == MAP_FAILED) return kOutOfMemory;
  mappings[address] = Mapping{bytes, handle};
  ++found->second.mappings;
  return kSuccess;
}

API int cuMemSetAccess(Pointer address, std::size_t bytes, const Access* access, std::size_t count) {
  ENTER(cuMemSetAccess);
  if (count != 1 || access == nullptr || access->location.type != kDeviceLocation) return kInvalidValue;
  if (!whole_mappings(address, bytes)) return kInvalidValue;
  const int protection = access->flags == kReadWrite  ? PROT_READ | PROT_WRITE
                         : access->flags == kReadOnly ? PROT_READ
                                                      : PROT_NONE;
  return mprotect(reinterpret_cast<void*>(address), bytes, protection) == 0 ? kSuccess : kUnknown;
}

API int cuMemUnmap(Pointer address, std::size_t bytes) {
  ENTER(cuMemUnmap);
  if (bytes == 0 || !whole_mappings(address, bytes)) return kInvalidValue;
  constexpr int hole = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, hole, -1, 0);
  for (auto found = mappings.find(address); found != mappings.end() && found->first < address + bytes;) {
    const Handle handle = found->second.handle;
    --memories.at(handle).mappings;
    found = mappings.erase(found);
    free_when_unused(handle);
  }
  return kSuccess;
}

API void emulated_cuda_fail(const char* call, unsigned nth) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (nth == 0) {
    failures.erase(call);
  } else {
    failures[call] = nth;
  }
}

API void emulated_cuda_live(std::size_t* held, std::size_t* mapped, std::size_t* reserved) {
  const std::lock_guard<std::mutex> lock(mutex);
  *held = memories.size();
  *mapped = mappings.size();
  *reserved = reservations.size();
}

// How deep the stack of contexts of this thread is: every call of ours must leave it as it was.
API std::size_t emulated_cuda_contexts() { return contexts.size(); }
