// Calls that torch_npu imports and nobody here wrote.
#pragma once

namespace cann {

// Says on stderr that `name` is not emulated, and returns the code of "feature not supported".
int refuse_unknown(const char* name);

}  // namespace cann
