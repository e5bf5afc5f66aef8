#include "unknown_call.h"

#include <cstdio>

#include "call.h"

namespace cann {

int refuse_unknown(const char* name) {
  std::fprintf(stderr, "emulated CANN: %s is not emulated\n", name);
  return answer([] { throw Refusal(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "not emulated"); }, name);
}

}  // namespace cann
