// One vector core while a kernel runs on it: its Unified Buffer, clocks, events, mask register and counters.
#pragma once

#include "counters.h"
#include "global_memory.h"
#include "ordering.h"
#include "unified_buffer.h"

namespace emulated {

// What decides the lanes of a vector instruction: a bit a lane, or (counter mode) how many elements in all.
struct MaskRegister {
  bool counter = false;
  uint64_t high = ~uint64_t{0};
  uint64_t low = ~uint64_t{0};
};

enum class BufferState : uint8_t { FREE, ALLOCATED, QUEUED, TAKEN };

constexpr std::array<const char*, 4> BUFFER_STATES = {"free", "allocated", "in the queue", "taken from the queue"};

// A piece of the Unified Buffer that InitBuffer laid out.
struct Buffer {
  uint32_t begin, end;
  bool queued;        // of a queue, so that it must be allocated before use
  Pipe filler, user;  // the pipes its queue stands between
  BufferState state = BufferState::FREE;
  uint32_t lease = 0;   // counts allocations: a tensor of an earlier one is stale
  int free_event = -1;  // set by FreeTensor, waited for by the next AllocTensor
};

// The event ids of each pair of pipes, taken and given back as TPipe does: the lowest free one first.
class EventIds {
 public:
  int fetch(const char* api, Pipe source, Pipe target) const {
    for (int id = 0; id < EVENTS; ++id) {
      if (!(taken_[source][target] >> id & 1)) return id;
    }
    refuse(api, "event ids of one pair of pipes", "at most 8 in use", "a ninth");
  }

  int allocate(const char* api, Pipe source, Pipe target) {
    const int id = fetch(api, source, target);
    taken_[source][target] |= uint8_t(1 << id);
    return id;
  }

  void release(Pipe source, Pipe target, int id) { taken_[source][target] &= uint8_t(~(1 << id)); }

 private:
  uint8_t taken_[PIPES][PIPES]{};
};

// What outlives a core: the arguments of the launch and the number of cores.
struct Launch {
  GlobalMemory memory;
  int64_t blocks = 1;
  uint64_t tiling_key = 0;
};

struct Core {
  Core(Launch& launch_in, UnifiedBuffer& ub_in, int64_t block_in) : launch(launch_in), ub(ub_in), block(block_in) {
    ub.reset();
  }

  void finish() {
    for (const Buffer& buffer : buffers) {
      if (buffer.queued && buffer.state != BufferState::FREE) {
        refuse("kernel end", "a buffer of a queue", "freed by FreeTensor", BUFFER_STATES[size_t(buffer.state)]);
      }
    }
    ordering.require_all_waited();
    launch.memory.finish_core(int(block));
  }

  Launch& launch;
  UnifiedBuffer& ub;
  int64_t block;
  Ordering ordering;
  EventIds events;
  MaskRegister mask;
  Counters counters;
  std::vector<Buffer> buffers;
  uint32_t laid_out = 0;  // bytes of the Unified Buffer that InitBuffer gave away
  void* pipe = nullptr;   // the TPipe of the kernel
};

inline Core* running = nullptr;

// The core that runs; AscendC calls make sense inside a launch only.
inline Core& core(const char* api) {
  if (!running) throw Violation(std::string(api) + ": expected a launch, got a call outside of one");
  return *running;
}

// Starts an instruction: its place in the order of its pipe, and its count.
inline Stamp issue(const char* api, Pipe pipe, uint64_t repeats) {
  Core& here = core(api);
  here.counters.add(api, repeats);
  return here.ordering.issue(pipe);
}

}  // namespace emulated
