// A call that breaks a rule throws a Refusal; `answer` (call.h) turns it into the code that the caller sees.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "acl/acl.h"

namespace cann {

// Which code a real runtime gives for each broken rule is not documented; these two are what torch_npu knows as
// "invalid parameter" of the API layer and of the runtime below it.
inline constexpr aclError kBadArgument = ACL_ERROR_INVALID_PARAM;
inline constexpr aclError kRuleBroken = ACL_ERROR_RT_PARAM_INVALID;
inline constexpr aclError kOutOfMemory = ACL_ERROR_RT_MEMORY_ALLOCATION;
inline constexpr aclError kDeviceFault = ACL_ERROR_RT_AICORE_EXCEPTION;

struct Refusal : std::runtime_error {
  Refusal(aclError code, const std::string& reason) : std::runtime_error(reason), code(code) {}
  aclError code;
};

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
void require(bool holds, aclError code, const Parts&... reason) {
  if (!holds) throw Refusal(code, text(reason...));
}

}  // namespace cann
