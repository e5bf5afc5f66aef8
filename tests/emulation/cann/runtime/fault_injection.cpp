#include "fault_injection.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "call.h"
#include "settings.h"

namespace cann {
namespace {

struct Order {
  uint64_t calls_left;
  aclError code;
};

// A call fails as running out of memory does unless told otherwise: it is the failure that programs expect.
class FaultInjection {
 public:
  FaultInjection() {
    std::istringstream orders(settings().fail);
    for (std::string order; std::getline(orders, order, ',');) parse(order);
  }

  void add(const std::string& name, uint64_t nth, aclError code) {
    std::lock_guard lock(mutex_);
    orders_.insert({name, {nth, code}});
  }

  void forget() {
    std::lock_guard lock(mutex_);
    orders_.clear();
  }

  void raise(const char* name) {
    std::lock_guard lock(mutex_);
    auto due = orders_.end();
    const auto [begin, end] = orders_.equal_range(name);
    for (auto order = begin; order != end; ++order)
      if (--order->second.calls_left == 0) due = order;
    if (due == orders_.end()) return;
    const aclError code = due->second.code;
    std::erase_if(orders_, [](const auto& order) { return order.second.calls_left == 0; });
    throw Refusal(code, "failed as a test asked");
  }

 private:
  void parse(const std::string& order) {
    std::istringstream parts(order);
    std::string name, nth, code;
    std::getline(parts, name, ':');
    std::getline(parts, nth, ':');
    std::getline(parts, code, ':');
    const uint64_t calls = std::strtoull(nth.c_str(), nullptr, 10);
    const aclError failure = code.empty() ? kOutOfMemory : std::atoi(code.c_str());
    if (name.empty() || calls == 0 || failure == 0) {
      std::fprintf(stderr, "emulated CANN: EMULATED_CANN_FAIL: '%s': expected call:n or call:n:code\n", order.c_str());
      std::exit(2);
    }
    add(name, calls, failure);
  }

  std::mutex mutex_;
  std::multimap<std::string, Order> orders_;
};

// Never destroyed: torch_npu still calls while the process ends.
FaultInjection& fault_injection() {
  static auto* const all = new FaultInjection;
  return *all;
}

}  // namespace

void raise_injected_failure(const char* name) { fault_injection().raise(name); }

}  // namespace cann

// The `nth` call of `name` from now (1: the next) answers `code` and does nothing. Once for each order.
EMULATED void emulatedCannFail(const char* name, uint64_t nth, aclError code) {
  cann::fault_injection().add(name, nth, code);
}

EMULATED void emulatedCannForgetFailures() { cann::fault_injection().forget(); }
