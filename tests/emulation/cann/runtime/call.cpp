#include "call.h"

#include <cstdio>
#include <exception>

#include "fault_injection.h"
#include "settings.h"
#include "statistics.h"

namespace cann {
namespace {

thread_local std::string reason_of_last_failure;
thread_local aclError code_of_last_failure = ACL_SUCCESS;

aclError fail(aclError code, const std::string& reason) {
  reason_of_last_failure = reason;
  code_of_last_failure = code;
  return code;
}

aclError run(const std::function<void()>& body, const char* name) {
  try {
    raise_injected_failure(name);
    body();
    return ACL_SUCCESS;
  } catch (const Refusal& refusal) {
    return fail(refusal.code, text(name, ": ", refusal.what()));
  } catch (const std::exception& error) {
    return fail(ACL_ERROR_RT_INTERNAL_ERROR, text(name, ": ", error.what()));
  }
}

}  // namespace

aclError answer(const std::function<void()>& body, const char* name) {
  count_call(name);
  const aclError code = run(body, name);
  if (settings().trace) {
    const char* reason = code == ACL_SUCCESS ? "" : reason_of_last_failure.c_str();
    std::fprintf(stderr, "emulated CANN: %s -> %d %s\n", name, code, reason);
  }
  return code;
}

const std::string& last_reason() { return reason_of_last_failure; }
aclError last_code() { return code_of_last_failure; }
void forget_last_code() { code_of_last_failure = ACL_SUCCESS; }

}  // namespace cann

EMULATED const char* aclGetRecentErrMsg() {
  static thread_local std::string message;
  message = cann::last_reason();
  return message.c_str();
}

EMULATED aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return cann::last_code(); }

EMULATED aclError aclrtGetLastError(aclrtLastErrLevel) {
  const aclError code = cann::last_code();
  cann::forget_last_code();
  return code;
}
