// A shared library that is opened when first needed and never linked, so that the extension loads on machines without
// it. Libraries stay open: their threads may outlive whoever opened them.
#pragma once

#include <string>

namespace weave::vmm {

class Library {
 public:
  explicit Library(const char* file);

  // Fills `*function`; on failure, and ever after, `missing()` says why.
  template <typename Function>
  Library& find(const char* symbol, Function** function) {
    *function = reinterpret_cast<Function*>(address_of(symbol));
    return *this;
  }

  // Why the library cannot be used; empty when it can.
  const std::string& missing() const { return missing_; }

 private:
  void* address_of(const char* symbol);

  void* handle_ = nullptr;
  std::string missing_;
};

}  // namespace weave::vmm
