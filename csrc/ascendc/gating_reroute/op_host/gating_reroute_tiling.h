// How the gating_reroute kernel cuts its work: plain C++ over settings and shapes, no CANN header, tested where there
// is no NPU.
#pragma once

#include <cstdint>

#include "../gating_reroute_tiling_data.h"

namespace weave::ascendc {

struct GatingShape {
  std::int64_t tokens;    // T, 1 or more
  std::int64_t experts;   // M
  std::int64_t top_k;     // K
  std::int64_t map_rows;  // slots + 1
  std::int64_t n_group;
  std::int64_t topk_group;
  LogitsType logits_type;
  bool sigmoid, biased, renormalize;
  float scale;  // routed_scaling_factor
};

// Fills `tiling` for `vector_cores` cores. Returns nullptr, or why the kernel cannot do this shape or these settings.
const char* tile_gating_reroute(const GatingShape& shape, std::int64_t vector_cores, GatingTiling* tiling);

}  // namespace weave::ascendc
