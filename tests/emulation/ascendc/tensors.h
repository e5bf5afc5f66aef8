// LocalTensor and GlobalTensor: typed views with the bounds they were made with.
#pragma once

#include "core.h"
#include "element_types.h"

namespace AscendC {

enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, MAX };
using QuePosition = TPosition;

// Where a tensor's bytes are: an address in the Unified Buffer, the range it may reach, and whose bytes they are.
struct LocalPlace {
  uint32_t address = 0;
  uint32_t begin = 0, end = 0;
  TPosition position = TPosition::MAX;  // MAX: a tensor of nothing
  int buffer = -1;
  uint32_t lease = 0;

  // Refuses the bytes [from, to) if they are not this tensor's, or if its buffer was given back.
  void check(const char* api, int64_t from, int64_t to) const {
    if (position == TPosition::MAX) emulated::refuse(api, "tensor", "one from a queue or a buffer", "an empty one");
    if (from < begin || to > end) {
      emulated::refuse(api, "out of bounds in the Unified Buffer", "bytes " + emulated::range(begin, end),
                       "bytes " + emulated::range(from, to));
    }
    const emulated::Buffer& owner = emulated::core(api).buffers[size_t(buffer)];
    if (owner.queued && (owner.state == emulated::BufferState::FREE || owner.lease != lease)) {
      emulated::refuse(api, "tensor", "one that is allocated", "one that FreeTensor gave back");
    }
  }

  void check_alignment(const char* api, const char* what, uint32_t alignment) const {
    if (address % alignment) {
      emulated::refuse(api, what, "an address that is a multiple of " + std::to_string(alignment), address);
    }
  }
};

template <typename T>
class LocalTensor {
 public:
  using PrimType = T;

  LocalTensor() = default;
  explicit LocalTensor(const LocalPlace& place) : place_(place) {}

  LocalTensor operator[](uint32_t offset) const {
    LocalPlace moved = place_;
    const uint64_t address = uint64_t(place_.address) + uint64_t(offset) * sizeof(T);
    if (address > place_.end) {
      emulated::refuse("LocalTensor[]", "offset", "at most " + std::to_string(GetSize()), offset);
    }
    moved.address = uint32_t(address);
    return LocalTensor(moved);
  }

  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    return LocalTensor<U>(place_);
  }

  // Elements from here to the end.
  uint32_t GetSize() const { return (place_.end - place_.address) / uint32_t(sizeof(T)); }
  int32_t GetPosition() const { return int32_t(place_.position); }

  T GetValue(uint32_t offset) const {
    T value;
    std::memcpy(&value, scalar_access("GetValue", offset, emulated::Kind::READ), sizeof value);
    return value;
  }

  template <typename U>
  void SetValue(uint32_t offset, U value) const {
    const T typed = static_cast<T>(value);
    std::memcpy(scalar_access("SetValue", offset, emulated::Kind::WRITE), &typed, sizeof typed);
  }

  const LocalPlace& place() const { return place_; }

 private:
  uint8_t* scalar_access(const char* api, uint32_t offset, emulated::Kind kind) const {
    const int64_t at = int64_t(place_.address) + int64_t(offset) * int64_t(sizeof(T));
    place_.check(api, at, at + int64_t(sizeof(T)));
    emulated::Core& core = emulated::core(api);
    const emulated::Stamp stamp = emulated::issue(api, emulated::S, 1);
    core.ub.touch_range(api, core.ordering, stamp, uint32_t(at), uint32_t(at + sizeof(T)), kind);
    return core.ub.at(uint32_t(at));
  }

  LocalPlace place_;
};

template <typename T>
class GlobalTensor {
 public:
  using PrimType = T;

  void SetGlobalBuffer(T* buffer, uint64_t size) {
    address_ = buffer;
    size_ = size;
    bounded_ = true;
  }

  void SetGlobalBuffer(T* buffer) {
    address_ = buffer;
    size_ = 0;
    bounded_ = false;
  }

  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor moved = *this;
    moved.address_ = address_ + offset;
    if (bounded_) {
      if (offset > size_) emulated::refuse("GlobalTensor[]", "offset", "at most " + std::to_string(size_), offset);
      moved.size_ = size_ - offset;
    }
    return moved;
  }

  template <typename U>
  GlobalTensor<U> ReinterpretCast() const {
    GlobalTensor<U> other;
    if (bounded_) {
      other.SetGlobalBuffer(reinterpret_cast<U*>(address_), size_ * sizeof(T) / sizeof(U));
    } else {
      other.SetGlobalBuffer(reinterpret_cast<U*>(address_));
    }
    return other;
  }

  T GetValue(uint64_t offset) const {
    const emulated::Stamp stamp = emulated::issue("GlobalTensor::GetValue", emulated::S, 1);
    T value;
    std::memcpy(&value, access("GlobalTensor::GetValue", stamp, offset * sizeof(T), sizeof(T), emulated::Kind::READ),
                sizeof value);
    return value;
  }

  T* GetPhyAddr(uint64_t offset = 0) const { return address_ + offset; }
  uint64_t GetSize() const { return size_; }

  // The memory at byte `from`, after the access was checked.
  uint8_t* access(const char* api, emulated::Stamp stamp, uint64_t from, uint64_t bytes, emulated::Kind kind) const {
    if (bounded_ && from + bytes > size_ * sizeof(T)) {
      emulated::refuse(api, "out of bounds of a GlobalTensor",
                       "bytes " + emulated::range<uint64_t>(0, size_ * sizeof(T)),
                       "bytes " + emulated::range(from, from + bytes));
    }
    emulated::Core& core = emulated::core(api);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address_) + from;
    core.launch.memory.access(api, core.ordering, stamp, begin, bytes, kind);
    return reinterpret_cast<uint8_t*>(begin);
  }

 private:
  T* address_ = nullptr;
  uint64_t size_ = 0;  // elements, when bounded_
  bool bounded_ = false;
};

}  // namespace AscendC
