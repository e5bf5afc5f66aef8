// Streams: queues of tasks, each with a thread that plays the device.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "device.h"

namespace cann {

class Stream {
 public:
  explicit Stream(Device& device);
  ~Stream();  // after the last task
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Tasks run in order, each EMULATED_CANN_TASK_DELAY_US late. A task that faults takes its device with it: from then
  // on only signals run.
  void push(std::function<void()> task);

  // Like a task, but it also runs on a faulted device: an event that never came would hold up other streams for ever.
  void push_signal(std::function<void()> signal);

  // Waits for all tasks pushed so far, `timeout_ms` at most, and refuses on a faulted device.
  void wait(std::optional<int32_t> timeout_ms = std::nullopt);
  bool idle();

  Device& device;
  const int32_t id;

 private:
  struct Task {
    std::function<void()> run;
    bool signal;
  };

  void add(Task task);
  void work();
  void run(const Task& task);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;  // the first is running
  bool ending_ = false;
  std::thread thread_;
};

// The stream of a handle; null means the default stream of the current device.
std::shared_ptr<Stream> stream_of(aclrtStream handle);

// All streams of a device, the default one too.
std::vector<std::shared_ptr<Stream>> streams_of(const Device& device);

}  // namespace cann
