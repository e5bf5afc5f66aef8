// Starts the gating_reroute kernel on a stream; CANN's compiler makes it together with the kernel.
#pragma once

#include "../gating_reroute_tiling_data.h"

namespace weave::ascendc {

// Addresses are in device memory, that of the correction bias may be null where there is none; `stream` is an
// aclrtStream. Returns at once.
void launch_gating_reroute(void* stream, const GatingTiling& tiling, void* logits, void* correction_bias,
                           void* token_slots, void* expert_map, void* weights, void* ids);

}  // namespace weave::ascendc
