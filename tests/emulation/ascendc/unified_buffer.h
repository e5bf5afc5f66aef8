// The 192 KiB of a vector core, with a shadow: which bytes hold something, and which instructions touched them last.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "ordering.h"

namespace emulated {

constexpr uint32_t UB_BYTES = 192 * 1024;
constexpr uint32_t BLOCK = 32;          // bytes of a DataBlock, the unit of strides and alignment
constexpr uint32_t REPEAT_BYTES = 256;  // what a vector instruction covers in one repeat

enum class Kind : uint8_t { READ, WRITE };

constexpr std::array<const char*, 2> VERBS = {"reads", "writes"};

// The bytes [first, first + count) of one block as a bit mask, bit 0 for its first byte.
inline uint32_t byte_mask(uint32_t first, uint32_t count) {
  return (count >= BLOCK ? ~uint32_t{0} : (uint32_t{1} << count) - 1) << first;
}

class UnifiedBuffer {
 public:
  UnifiedBuffer() : shadow_(UB_BYTES / BLOCK) { reset(); }

  // As at the start of a kernel: nothing initialised, and bytes that are no plausible number of any type.
  void reset() {
    std::memset(bytes_, 0xA5, sizeof bytes_);
    for (Shadow& block : shadow_) {
      block.initialised = 0;
      block.recent.clear();
    }
  }

  uint8_t* at(uint32_t address) { return bytes_ + address; }

  // Notes that the instruction `stamp` of `api` touches the bytes `mask` of block number `block`; refuses a read of
  // what nobody wrote and an access that nothing orders after an earlier one.
  void touch(const char* api, const Ordering& ordering, Stamp stamp, uint32_t block, uint32_t mask, Kind kind) {
    Shadow& shadow = shadow_[block];
    if (kind == Kind::READ && (shadow.initialised & mask) != mask) refuse_uninitialised(api, block, mask);
    if (kind == Kind::WRITE) shadow.initialised |= mask;
    size_t kept = 0;
    Access now{mask, stamp, kind, api};
    for (Access& before : shadow.recent) {
      if (before.stamp == stamp && before.kind == kind) {
        now.bytes |= before.bytes;
        continue;
      }
      if (before.bytes & mask) {
        const bool conflict = kind == Kind::WRITE || before.kind == Kind::WRITE;
        if (conflict && !ordering.ordered(before.stamp, stamp)) refuse_race(now, before, block, mask);
        // Whatever comes after this access comes after `before` as well, so it need not be remembered.
        if (kind == Kind::WRITE || (before.kind == Kind::READ && before.stamp.pipe == stamp.pipe))
          before.bytes &= ~mask;
      }
      if (before.bytes) shadow.recent[kept++] = before;
    }
    if (kept == shadow.recent.size()) {
      shadow.recent.push_back(now);
    } else {
      shadow.recent[kept] = now;
      shadow.recent.resize(kept + 1);
    }
  }

  void touch_range(const char* api, const Ordering& ordering, Stamp stamp, uint32_t begin, uint32_t end, Kind kind) {
    while (begin < end) {
      const uint32_t first = begin % BLOCK, count = std::min(BLOCK - first, end - begin);
      touch(api, ordering, stamp, begin / BLOCK, byte_mask(first, count), kind);
      begin += count;
    }
  }

  // The bytes hold nothing a kernel may rely on: a buffer handed out again, filling of unspecified value.
  void forget(uint32_t begin, uint32_t end) {
    while (begin < end) {
      const uint32_t first = begin % BLOCK, count = std::min(BLOCK - first, end - begin);
      shadow_[begin / BLOCK].initialised &= ~byte_mask(first, count);
      begin += count;
    }
  }

 private:
  struct Access {
    uint32_t bytes;
    Stamp stamp;
    Kind kind;
    const char* api;
  };

  struct Shadow {
    uint32_t initialised = 0;
    std::vector<Access> recent;
  };

  [[noreturn]] void refuse_uninitialised(const char* api, uint32_t block, uint32_t mask) const {
    const uint32_t missing = mask & ~shadow_[block].initialised;
    refuse(api, "read of uninitialised Unified Buffer", "bytes that something wrote",
           "byte " + std::to_string(block * BLOCK + __builtin_ctz(missing)) + " of the Unified Buffer");
  }

  [[noreturn]] static void refuse_race(const Access& now, const Access& before, uint32_t block, uint32_t mask) {
    std::ostringstream got;
    got << now.api << " on pipe " << PIPE_NAMES[now.stamp.pipe] << ' ' << VERBS[int(now.kind)] << " byte "
        << block * BLOCK + uint32_t(__builtin_ctz(before.bytes & mask)) << " of the Unified Buffer, which "
        << before.api << " on pipe " << PIPE_NAMES[before.stamp.pipe] << ' ' << VERBS[int(before.kind)];
    refuse(now.api, "race between pipes", "a queue, a flag or a barrier between them", got.str());
  }

  alignas(BLOCK) uint8_t bytes_[UB_BYTES];
  std::vector<Shadow> shadow_;
};

}  // namespace emulated
