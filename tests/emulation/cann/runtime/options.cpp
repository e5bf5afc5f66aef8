// Options that a program sets and reads back; none changes what is computed here.
#include <cstdint>
#include <map>
#include <mutex>

#include "call.h"

namespace {

class Options {
 public:
  void set(int option, int64_t value) {
    std::lock_guard lock(mutex_);
    values_[option] = value;
  }

  int64_t get(int option) {
    std::lock_guard lock(mutex_);
    return values_[option];  // off unless set
  }

 private:
  std::mutex mutex_;
  std::map<int, int64_t> values_;
};

Options& options() {
  static auto* const all = new Options;
  return *all;
}

}  // namespace

EMULATED aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  return cann::answer([=] { options().set(option, value); });
}

EMULATED aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  return aclrtSetSysParamOpt(option, value);
}

EMULATED aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  return cann::answer([=] {
    cann::require(value, cann::kBadArgument, "value is null");
    *value = options().get(option);
  });
}
