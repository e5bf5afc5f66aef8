// SetFlag, WaitFlag, PipeBarrier and the events they name.
#pragma once

#include "core.h"

using pipe_t = emulated::Pipe;
constexpr pipe_t PIPE_S = emulated::S;
constexpr pipe_t PIPE_V = emulated::V;
constexpr pipe_t PIPE_MTE2 = emulated::MTE2;
constexpr pipe_t PIPE_MTE3 = emulated::MTE3;
constexpr pipe_t PIPE_ALL = emulated::PIPES;

enum event_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

namespace AscendC {

using TEventID = int8_t;

// The pairs a vector core has.
enum class HardEvent : uint8_t {
  MTE2_V,
  V_MTE2,
  MTE3_V,
  V_MTE3,
  MTE3_MTE2,
  MTE2_MTE3,
  S_V,
  V_S,
  S_MTE2,
  MTE2_S,
  S_MTE3,
  MTE3_S
};

struct PipePair {
  pipe_t source, target;
};

constexpr PipePair pipes_of(HardEvent event) {
  constexpr PipePair pairs[] = {{PIPE_MTE2, PIPE_V}, {PIPE_V, PIPE_MTE2},    {PIPE_MTE3, PIPE_V},
                                {PIPE_V, PIPE_MTE3}, {PIPE_MTE3, PIPE_MTE2}, {PIPE_MTE2, PIPE_MTE3},
                                {PIPE_S, PIPE_V},    {PIPE_V, PIPE_S},       {PIPE_S, PIPE_MTE2},
                                {PIPE_MTE2, PIPE_S}, {PIPE_S, PIPE_MTE3},    {PIPE_MTE3, PIPE_S}};
  return pairs[int(event)];
}

template <HardEvent event>
inline void SetFlag(int32_t event_id) {
  emulated::Core& core = emulated::core("SetFlag");
  core.counters.add("SetFlag", 1);
  core.ordering.set_flag(pipes_of(event).source, pipes_of(event).target, event_id);
}

template <HardEvent event>
inline void WaitFlag(int32_t event_id) {
  emulated::Core& core = emulated::core("WaitFlag");
  core.counters.add("WaitFlag", 1);
  core.ordering.wait_flag(pipes_of(event).source, pipes_of(event).target, event_id);
}

template <pipe_t pipe>
inline void PipeBarrier() {
  static_assert(pipe != PIPE_S, "PipeBarrier: PIPE_S has no barrier; the hardware orders it");
  emulated::Core& core = emulated::core("PipeBarrier");
  core.counters.add("PipeBarrier", 1);
  if constexpr (pipe == PIPE_ALL) {
    core.ordering.barrier_all();
  } else {
    core.ordering.barrier(pipe);
  }
}

}  // namespace AscendC
