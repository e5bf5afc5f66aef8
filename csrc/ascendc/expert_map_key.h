// Tiling keys: where a kernel finds a token's row of the expert map.
#pragma once

#include <cstdint>

namespace weave::ascendc {

enum ExpertMapKey : std::uint32_t {
  kTableInUb = 0,  // the whole map is brought into the unified buffer once a core
  kRowByRow = 1,   // each token's row is fetched with its tile: the map is large, or the tokens are few
};

}  // namespace weave::ascendc
