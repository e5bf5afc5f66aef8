#include "device_fault.h"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <mutex>
#include <string>

namespace cann {
namespace {

thread_local sigjmp_buf way_out;
thread_local volatile bool in_task = false;
thread_local const void* volatile fault_address;
struct sigaction handler_before;

// Outside of a task the handler that was there before (Python's fault handler) has the word: the instruction faults
// again under it.
void on_fault(int, siginfo_t* info, void*) {
  if (!in_task) {
    sigaction(SIGSEGV, &handler_before, nullptr);
    return;
  }
  fault_address = info->si_addr;
  siglongjmp(way_out, 1);
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction handler{};
    handler.sa_sigaction = on_fault;
    handler.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &handler, &handler_before);
  });
}

}  // namespace

bool survives(const std::function<void()>& task) {
  install_handler();
  if (sigsetjmp(way_out, 1) != 0) {
    in_task = false;
    std::fprintf(stderr, "emulated CANN: device fault: a task touched %p, where no memory is\n", fault_address);
    return false;
  }
  in_task = true;
  bool finished = true;
  try {
    task();
  } catch (const std::exception& error) {
    const std::string reason = error.what();  // the first line; what follows is the stack of this library
    std::fprintf(stderr, "emulated CANN: device fault: a task failed: %s\n",
                 reason.substr(0, reason.find('\n')).c_str());
    finished = false;
  }
  in_task = false;
  return finished;
}

}  // namespace cann
