// Calls that fail on request, to see what the code above does then.
#pragma once

namespace cann {

// Throws the Refusal that was asked for this call of `name`, if one was: by EMULATED_CANN_FAIL, a comma-separated list
// of `call:n` or `call:n:code` (the process's n-th call of that name, from 1), or by `emulatedCannFail`.
void raise_injected_failure(const char* name);

}  // namespace cann
