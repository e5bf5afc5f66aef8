#include "statistics.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "call.h"
#include "settings.h"

namespace cann {
namespace {

class Statistics {
 public:
  void count(const char* name) {
    std::lock_guard lock(mutex_);
    ++counts_[name];
  }

  uint64_t of(const char* name) {
    std::lock_guard lock(mutex_);
    const auto found = counts_.find(name);
    return found == counts_.end() ? 0 : found->second;
  }

  void print() {
    std::lock_guard lock(mutex_);
    for (const auto& [name, count] : counts_)
      std::fprintf(stderr, "emulated CANN: %s was called %llu times\n", name.c_str(),
                   static_cast<unsigned long long>(count));
  }

 private:
  std::mutex mutex_;
  std::map<std::string, uint64_t> counts_;
};

// Never destroyed: torch_npu still calls while the process ends.
Statistics& statistics() {
  static auto* const all = [] {
    if (settings().statistics) std::atexit([] { statistics().print(); });
    return new Statistics;
  }();
  return *all;
}

}  // namespace

void count_call(const char* name) { statistics().count(name); }

}  // namespace cann

// How often this process made the call `name`.
EMULATED uint64_t emulatedCannCalls(const char* name) { return cann::statistics().of(name); }
