// How often each call was made.
#pragma once

namespace cann {

void count_call(const char* name);

}  // namespace cann
