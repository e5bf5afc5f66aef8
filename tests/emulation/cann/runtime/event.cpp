// Events: marks in a stream that others wait for.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "call.h"
#include "handles.h"
#include "stream.h"

namespace cann {
namespace {

using Clock = std::chrono::steady_clock;

// An event may be recorded again before the last record was reached; who waits, waits for the records made so far.
class Event {
 public:
  uint64_t announce() {
    std::lock_guard lock(mutex_);
    return ++announced_;
  }

  void reach(uint64_t record) {
    std::lock_guard lock(mutex_);
    reached_ = record;
    time_ = Clock::now();
    changed_.notify_all();
  }

  uint64_t announced() {
    std::lock_guard lock(mutex_);
    return announced_;
  }

  void wait_for(uint64_t record) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reached_ >= record; });
  }

  bool complete() {
    std::lock_guard lock(mutex_);
    return reached_ == announced_;
  }

  Clock::time_point time() {
    std::lock_guard lock(mutex_);
    require(reached_ > 0 && reached_ == announced_, ACL_ERROR_RT_EVENT_NOT_COMPLETE, "the event is not complete");
    return time_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t announced_ = 0;
  uint64_t reached_ = 0;
  Clock::time_point time_;
};

Handles<Event>& event_handles() {
  static auto* const all = new Handles<Event>("event");
  return *all;
}

std::shared_ptr<Event> event_of(aclrtEvent handle) { return event_handles().get(handle); }

}  // namespace
}  // namespace cann

using cann::answer;
using cann::event_of;
using cann::kBadArgument;
using cann::require;
using cann::stream_of;

EMULATED aclError aclrtCreateEvent(aclrtEvent* event) {
  return answer([=] {
    require(event, kBadArgument, "event is null");
    *event = cann::event_handles().add(std::make_shared<cann::Event>());
  });
}

EMULATED aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) { return aclrtCreateEvent(event); }
EMULATED aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) { return aclrtCreateEvent(event); }

EMULATED aclError aclrtDestroyEvent(aclrtEvent event) {
  return answer([=] { cann::event_handles().remove(event); });
}

EMULATED aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream) {
  return answer([=] {
    const auto event = event_of(handle);
    const auto target = stream_of(stream);
    target->push_signal([event, record = event->announce()] { event->reach(record); });
  });
}

EMULATED aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent handle) {
  return answer([=] {
    const auto event = event_of(handle);
    stream_of(stream)->push_signal([event, record = event->announced()] { event->wait_for(record); });
  });
}

// Records are counted, so there is nothing to take back before an event is used again.
EMULATED aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  return answer([=] {
    event_of(event);
    stream_of(stream);
  });
}

EMULATED aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return answer([=] {
    require(status, kBadArgument, "status is null");
    *status = event_of(event)->complete() ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  });
}

EMULATED aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus* status) {
  return answer([=] {
    require(status, kBadArgument, "status is null");
    *status = event_of(event)->complete() ? ACL_EVENT_WAIT_STATUS_COMPLETE : ACL_EVENT_WAIT_STATUS_NOT_READY;
  });
}

EMULATED aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  return answer([=] {
    const auto event = event_of(handle);
    event->wait_for(event->announced());
    cann::current_device().require_healthy();
  });
}

EMULATED aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  return answer([=] {
    require(milliseconds, kBadArgument, "ms is null");
    const std::chrono::duration<float, std::milli> elapsed = event_of(end)->time() - event_of(start)->time();
    *milliseconds = elapsed.count();
  });
}
