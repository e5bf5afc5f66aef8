// Which tokens a core takes: consecutive ones, as many as any other core or one more.
#pragma once

#include "kernel_operator.h"

namespace weave::ascendc {

struct CoreTokens {
  std::uint32_t begin, end;
};

__aicore__ inline CoreTokens TokensOfCore(std::uint32_t tokens, std::uint32_t cores) {
  const std::uint32_t share = tokens / cores;
  const std::uint32_t extra = tokens % cores;
  const std::uint32_t core = AscendC::GetBlockIdx();
  const std::uint32_t begin = core * share + (core < extra ? core : extra);
  return {begin, begin + share + (core < extra ? 1 : 0)};
}

}  // namespace weave::ascendc
