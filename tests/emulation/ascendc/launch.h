// Runs a kernel block by block, and the C functions that a test calls.
#pragma once

#include <tuple>
#include <utility>

#include "arithmetic.h"
#include "core.h"

namespace emulated {

struct Session {
  struct Tensor {
    uintptr_t address;
    uint64_t bytes;
    bool initialised, writable;
  };

  std::vector<Tensor> tensors;
  std::string error;
  std::string counters;
  UnifiedBuffer ub;
};

inline Session& session() {
  static Session only;
  return only;
}

template <typename... Parameters, size_t... Index>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Index...>) {
  kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[Index])...);
}

// Runs `kernel` on each block in turn. `arguments` point at the values of its parameters. 0, or 1 after a violation.
template <typename... Parameters>
int launch(void (*kernel)(Parameters...), int64_t blocks, uint64_t tiling_key, void** arguments) {
  Session& here = session();
  Launch launch;
  launch.blocks = blocks;
  launch.tiling_key = tiling_key;
  for (const Session::Tensor& tensor : here.tensors) {
    launch.memory.add(tensor.address, tensor.bytes, tensor.initialised, tensor.writable);
  }
  here.error.clear();
  here.counters.clear();
  int64_t block = 0;
  try {
    for (; block < blocks; ++block) {
      Core core(launch, here.ub, block);
      running = &core;
      call(kernel, arguments, std::index_sequence_for<Parameters...>{});
      core.finish();
      running = nullptr;
      here.counters += (block ? ", " : "") + core.counters.json();
    }
    launch.memory.check_cores();
  } catch (const Violation& violation) {
    here.error = (block < blocks ? "core " + std::to_string(block) : "launch") + ": " + violation.what();
  }
  running = nullptr;
  return here.error.empty() ? 0 : 1;
}

}  // namespace emulated

namespace AscendC {

inline int64_t GetBlockIdx() { return emulated::core("GetBlockIdx").block; }
inline int64_t GetBlockNum() { return emulated::core("GetBlockNum").launch.blocks; }

}  // namespace AscendC

#define EMULATED_EXPORT extern "C" __attribute__((visibility("default")))

// The functions of a library with one kernel source; the kernels themselves by EMULATED_KERNEL.
#define EMULATED_LIBRARY()                                                                                 \
  EMULATED_EXPORT void emulated_clear_tensors() { emulated::session().tensors.clear(); }                   \
  EMULATED_EXPORT void emulated_add_tensor(void* address, uint64_t bytes, int initialised, int writable) { \
    emulated::session().tensors.push_back(                                                                 \
        {reinterpret_cast<uintptr_t>(address), bytes, initialised != 0, writable != 0});                   \
  }                                                                                                        \
  EMULATED_EXPORT void emulated_set_nan_rule(int rule) { emulated::nan_rule = emulated::NanRule(rule); }   \
  EMULATED_EXPORT const char* emulated_error() { return emulated::session().error.c_str(); }               \
  EMULATED_EXPORT const char* emulated_counters() { return emulated::session().counters.c_str(); }

#define EMULATED_KERNEL(NAME)                                                                         \
  EMULATED_EXPORT int emulated_launch_##NAME(int64_t blocks, uint64_t tiling_key, void** arguments) { \
    return emulated::launch(&NAME, blocks, tiling_key, arguments);                                    \
  }
