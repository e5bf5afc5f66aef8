// What the environment says about the emulated machine, read once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cann {

struct Settings {
  int32_t devices;        // EMULATED_CANN_DEVICES, default 2
  size_t memory_bytes;    // EMULATED_CANN_MEMORY_BYTES of each device, default 4 GiB
  int64_t task_delay_us;  // EMULATED_CANN_TASK_DELAY_US: every stream task starts this much later, default 0
  int64_t
      launch_delay_us;  // EMULATED_CANN_LAUNCH_DELAY_US: every operator reaches its stream this much later, default 0
  bool trace;           // EMULATED_CANN_TRACE=1: each call and its answer on stderr
  bool statistics;      // EMULATED_CANN_STATISTICS=1: calls by name on stderr when the process ends
  std::string fail;     // EMULATED_CANN_FAIL, see fault_injection.h
  std::string soc;      // EMULATED_CANN_SOC, default Ascend910B1
  std::string version;  // EMULATED_CANN_VERSION, default 9.1.0
};

// Ends the process when a variable is not what it should be: a test must not run on a machine it did not ask for.
const Settings& settings();

}  // namespace cann
