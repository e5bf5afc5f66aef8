#include "settings.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace cann {
namespace {

std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

int64_t number(const char* name, const char* otherwise, int64_t least, int64_t most) {
  const std::string value = variable(name, otherwise);
  char* end = nullptr;
  errno = 0;
  const int64_t parsed = std::strtoll(value.c_str(), &end, 10);
  if (errno == 0 && *end == '\0' && least <= parsed && parsed <= most) return parsed;
  std::fprintf(stderr, "emulated CANN: %s=%s: expected a whole number from %lld to %lld\n", name, value.c_str(),
               static_cast<long long>(least), static_cast<long long>(most));
  std::exit(2);
}

}  // namespace

const Settings& settings() {
  static const Settings parsed{
      .devices = static_cast<int32_t>(number("EMULATED_CANN_DEVICES", "2", 1, 64)),
      .memory_bytes = static_cast<size_t>(number("EMULATED_CANN_MEMORY_BYTES", "4294967296", 1, int64_t{1} << 46)),
      .task_delay_us = number("EMULATED_CANN_TASK_DELAY_US", "0", 0, 10'000'000),
      .launch_delay_us = number("EMULATED_CANN_LAUNCH_DELAY_US", "0", 0, 10'000'000),
      .trace = number("EMULATED_CANN_TRACE", "0", 0, 1) == 1,
      .statistics = number("EMULATED_CANN_STATISTICS", "0", 0, 1) == 1,
      .fail = variable("EMULATED_CANN_FAIL", ""),
      .soc = variable("EMULATED_CANN_SOC", "Ascend910B1"),
      .version = variable("EMULATED_CANN_VERSION", "9.1.0"),
  };
  return parsed;
}

}  // namespace cann
