// Which instructions a kernel may use, asked once: those of the processor, within torch's own setting.
#pragma once

#include <ATen/Version.h>

#include <string>

namespace weave::cpu {

// For functions that are compiled once for every target; they must end up inside a function that names one.
#define WEAVE_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define WEAVE_AVX2 __attribute__((target("arch=x86-64-v3")))
#define WEAVE_AVX512 __attribute__((target("arch=x86-64-v4")))
#else
#define WEAVE_AVX2
#define WEAVE_AVX512
#endif

enum class Capability { kAny, kAvx2, kAvx512 };

// ATEN_CPU_CAPABILITY (default, avx2, avx512) limits it, as it limits torch's kernels.
inline Capability capability() {
#if defined(__x86_64__)
  static const Capability found = [] {
    const std::string torch = at::get_cpu_capability();
    if (torch == "AVX512" && __builtin_cpu_supports("x86-64-v4")) return Capability::kAvx512;
    const bool wide = torch == "AVX512" || torch == "AVX2";
    return wide && __builtin_cpu_supports("x86-64-v3") ? Capability::kAvx2 : Capability::kAny;
  }();
  return found;
#else
  return Capability::kAny;
#endif
}

}  // namespace weave::cpu
