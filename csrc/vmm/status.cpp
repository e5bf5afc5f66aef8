#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace weave::vmm {
namespace {

thread_local std::string error_text;

}  // namespace

const std::string& last_error() { return error_text; }

Status fail(Status status, const char* pattern, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  error_text = text;
  return status;
}

}  // namespace weave::vmm
