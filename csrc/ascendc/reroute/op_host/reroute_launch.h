// Starts the reroute kernel on a stream; CANN's compiler makes it together with the kernel.
#pragma once

#include "../reroute_tiling_data.h"

namespace weave::ascendc {

// Addresses are in device memory; `stream` is an aclrtStream. Returns at once.
void launch_reroute(void* stream, const RerouteTiling& tiling, void* topk_ids, void* token_slots, void* expert_map,
                    void* out);

}  // namespace weave::ascendc
