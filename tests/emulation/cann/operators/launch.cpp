#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "operator.h"
#include "place.h"
#include "settings.h"
#include "stream.h"

namespace cann {
namespace {

// A hole is not refused here: a device finds out when the task runs.
void check_place(const void* address, const Device& device) {
  const Place place = place_of(address, 1);
  require(!place.on_host(), kRuleBroken, address, " is in host memory");
  const bool elsewhere = place.kind == Place::Kind::kDevice && place.device != device.id;
  require(!elsewhere, kRuleBroken, address, " is memory of device ", place.device, ", the stream is of device ",
          device.id);
}

}  // namespace

aclError answer_or_fault(const char* name, const std::function<void()>& body) {
  const aclError code = answer(body, name);
  if (code == ACL_SUCCESS) return code;
  std::fprintf(stderr, "emulated CANN: %s\n", last_reason().c_str());
  current_device().fault();
  return code;
}

aclError launch(const char* name, aclOpExecutor* executor, aclrtStream handle) {
  const std::shared_ptr<aclOpExecutor> planned(executor);
  std::this_thread::sleep_for(std::chrono::microseconds(settings().launch_delay_us));
  const auto enqueue = [&] {
    const auto stream = stream_of(handle);
    for (const void* address : planned->addresses) check_place(address, stream->device);
    stream->push([planned] {
      const c10::InferenceMode inference;
      at::set_num_threads(1);  // a fault must happen on the stream's own thread
      planned->compute();
    });
  };
  return answer_or_fault(name, enqueue);
}

}  // namespace cann
