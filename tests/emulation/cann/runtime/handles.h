// Opaque handles for objects that callers name by a void pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "refusal.h"

namespace cann {

// A handle is a number that is never used twice, so one that outlived its object is refused and never followed.
// The object itself lives on while somebody else holds it.
template <typename Object>
class Handles {
 public:
  explicit Handles(const char* kind) : kind_(kind) {}

  void* add(std::shared_ptr<Object> object) {
    std::lock_guard lock(mutex_);
    void* const handle = reinterpret_cast<void*>(next_);
    next_ += kStep;
    objects_.emplace(handle, std::move(object));
    return handle;
  }

  std::shared_ptr<Object> get(const void* handle) {
    std::lock_guard lock(mutex_);
    return find(handle)->second;
  }

  std::shared_ptr<Object> remove(const void* handle) {
    std::lock_guard lock(mutex_);
    const auto entry = find(handle);
    std::shared_ptr<Object> object = std::move(entry->second);
    objects_.erase(entry);
    return object;
  }

  std::vector<std::shared_ptr<Object>> all() {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Object>> objects;
    for (const auto& [handle, object] : objects_) objects.push_back(object);
    return objects;
  }

 private:
  static constexpr uintptr_t kStep = 16;

  auto find(const void* handle) {
    const auto entry = objects_.find(handle);
    require(entry != objects_.end(), kRuleBroken, handle, " is not a ", kind_, ", or no longer");
    return entry;
  }

  const char* const kind_;
  std::mutex mutex_;
  uintptr_t next_ = kStep;
  std::unordered_map<const void*, std::shared_ptr<Object>> objects_;
};

}  // namespace cann
