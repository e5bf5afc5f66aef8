#include "stream.h"

#include <atomic>
#include <chrono>
#include <map>

#include "call.h"
#include "device_fault.h"
#include "handles.h"
#include "settings.h"

namespace cann {
namespace {

int32_t next_id() {
  static std::atomic<int32_t> next{0};
  return next++;
}

Handles<Stream>& stream_handles() {
  static auto* const all = new Handles<Stream>("stream");
  return *all;
}

std::shared_ptr<Stream> default_stream(Device& device) {
  static auto* const streams = new std::map<int32_t, std::shared_ptr<Stream>>;
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  auto& stream = (*streams)[device.id];
  if (!stream) stream = std::make_shared<Stream>(device);
  return stream;
}

}  // namespace

Stream::Stream(Device& device) : device(device), id(next_id()), thread_([this] { work(); }) {}

Stream::~Stream() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Stream::push(std::function<void()> task) { add({std::move(task), false}); }
void Stream::push_signal(std::function<void()> signal) { add({std::move(signal), true}); }

void Stream::add(Task task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

void Stream::wait(std::optional<int32_t> timeout_ms) {
  std::unique_lock lock(mutex_);
  const auto done = [this] { return tasks_.empty(); };
  if (!timeout_ms) changed_.wait(lock, done);
  const bool in_time = !timeout_ms || changed_.wait_for(lock, std::chrono::milliseconds(*timeout_ms), done);
  require(in_time, ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "stream ", id, " was not done after ", timeout_ms.value_or(0),
          " ms");
  device.require_healthy();
}

bool Stream::idle() {
  std::lock_guard lock(mutex_);
  return tasks_.empty();
}

void Stream::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const Task& task = tasks_.front();  // stays where it is while others are added behind it
    lock.unlock();
    run(task);
    lock.lock();
    tasks_.pop_front();
    changed_.notify_all();
  }
}

void Stream::run(const Task& task) {
  std::this_thread::sleep_for(std::chrono::microseconds(settings().task_delay_us));
  if (device.faulted() && !task.signal) return;
  if (!survives(task.run)) device.fault();
}

std::shared_ptr<Stream> stream_of(aclrtStream handle) {
  return handle ? stream_handles().get(handle) : default_stream(current_device());
}

std::vector<std::shared_ptr<Stream>> streams_of(const Device& device) {
  auto streams = stream_handles().all();
  std::erase_if(streams, [&](const auto& stream) { return &stream->device != &device; });
  streams.push_back(default_stream(cann::device(device.id)));
  return streams;
}

namespace {

std::optional<int32_t> limit(int32_t timeout_ms) {
  require(timeout_ms >= -1, kBadArgument, "timeout must be -1 or more, is ", timeout_ms);
  return timeout_ms == -1 ? std::nullopt : std::optional(timeout_ms);
}

void wait_for_device(std::optional<int32_t> timeout_ms) {
  for (const auto& stream : streams_of(current_device())) stream->wait(timeout_ms);
}

}  // namespace
}  // namespace cann

using cann::answer;
using cann::kBadArgument;
using cann::require;
using cann::stream_of;

EMULATED aclError aclrtCreateStream(aclrtStream* stream) {
  return answer([=] {
    require(stream, kBadArgument, "stream is null");
    *stream = cann::stream_handles().add(std::make_shared<cann::Stream>(cann::current_device()));
  });
}

EMULATED aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  return aclrtCreateStream(stream);
}

EMULATED aclError aclrtDestroyStream(aclrtStream stream) {
  return answer([=] { cann::stream_handles().remove(stream); });
}

EMULATED aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

EMULATED aclError aclrtSynchronizeStream(aclrtStream stream) {
  return answer([=] { stream_of(stream)->wait(); });
}

EMULATED aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout_ms) {
  return answer([=] { stream_of(stream)->wait(cann::limit(timeout_ms)); });
}

EMULATED aclError aclrtSynchronizeDevice() {
  return answer([] { cann::wait_for_device(std::nullopt); });
}

EMULATED aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) {
  return answer([=] { cann::wait_for_device(cann::limit(timeout_ms)); });
}

EMULATED aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  return answer([=] {
    require(status, kBadArgument, "status is null");
    *status = stream_of(stream)->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  });
}

EMULATED aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  return answer([=] {
    require(id, kBadArgument, "streamId is null");
    *id = stream_of(stream)->id;
  });
}
