// Tasks that touch memory which is not there.
#pragma once

#include <functional>

namespace cann {

// Runs `task` on the calling thread. False, with a line on stderr, when it touched an address with no memory under it
// or threw: on a device, both are an exception of the core that ran it. What the task had begun stays as it was.
bool survives(const std::function<void()>& task);

}  // namespace cann
