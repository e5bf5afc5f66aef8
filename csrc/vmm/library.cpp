#include "library.h"

#include <dlfcn.h>

namespace weave::vmm {

Library::Library(const char* file) : handle_(dlopen(file, RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ == nullptr) missing_ = dlerror();
}

void* Library::address_of(const char* symbol) {
  if (handle_ == nullptr) return nullptr;
  void* address = dlsym(handle_, symbol);
  if (address == nullptr && missing_.empty()) missing_ = dlerror();
  return address;
}

}  // namespace weave::vmm
