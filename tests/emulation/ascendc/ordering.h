// Which instruction is known to be complete when another one starts: one vector clock a pipe.
//
// Instructions of a pipe start in program order but overlap, so even within V, MTE2 and MTE3 only a barrier makes an
// earlier one complete. S completes each before the next. Nothing else orders: automatic synchronisation is not
// assumed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "violation.h"

namespace emulated {

enum Pipe : uint8_t { S, V, MTE2, MTE3, PIPES };

constexpr std::array<const char*, PIPES> PIPE_NAMES = {"S", "V", "MTE2", "MTE3"};
constexpr int EVENTS = 8;  // ids per pair of pipes

// The instruction number `ticket` (from 1) of a pipe.
struct Stamp {
  Pipe pipe = S;
  uint32_t ticket = 0;

  bool operator==(const Stamp& other) const { return pipe == other.pipe && ticket == other.ticket; }
};

class Ordering {
 public:
  using Clock = std::array<uint32_t, PIPES>;  // the last instruction of each pipe known to be complete

  Stamp issue(Pipe pipe) { return {pipe, ++issued_[pipe]}; }

  uint32_t issued(Pipe pipe) const { return issued_[pipe]; }

  // Whether `earlier` is complete before `later`, an instruction just issued, starts. One instruction never waits for
  // itself.
  bool ordered(Stamp earlier, Stamp later) const {
    if (earlier.pipe == later.pipe && (later.pipe == S || earlier.ticket == later.ticket)) return true;
    return earlier.ticket <= known_[later.pipe][earlier.pipe];
  }

  void barrier(Pipe pipe) { known_[pipe][pipe] = issued_[pipe]; }

  void barrier_all() { known_.fill(issued_); }

  void set_flag(Pipe source, Pipe target, int id) {
    Flag& flag = find("SetFlag", source, target, id);
    if (flag.set) refuse("SetFlag", name(source, target, id).c_str(), "its WaitFlag first", "the flag set twice");
    flag = {true, known_[source]};
    flag.carried[source] = issued_[source];
  }

  void wait_flag(Pipe source, Pipe target, int id) {
    Flag& flag = find("WaitFlag", source, target, id);
    if (!flag.set) refuse("WaitFlag", name(source, target, id).c_str(), "a SetFlag before it", "a wait without end");
    flag.set = false;
    for (int pipe = 0; pipe < PIPES; ++pipe) {
      known_[target][pipe] = std::max(known_[target][pipe], flag.carried[pipe]);
    }
  }

  // At the end of a kernel: a flag left set hangs or misleads the next one.
  void require_all_waited() const {
    for (int source = 0; source < PIPES; ++source) {
      for (int target = 0; target < PIPES; ++target) {
        for (int id = 0; id < EVENTS; ++id) {
          if (!flags_[source][target][id].set) continue;
          refuse("SetFlag", name(Pipe(source), Pipe(target), id).c_str(), "a WaitFlag before the kernel ends", "none");
        }
      }
    }
  }

 private:
  struct Flag {
    bool set = false;
    Clock carried{};
  };

  static std::string name(Pipe source, Pipe target, int id) {
    return std::string(PIPE_NAMES[source]) + "_" + PIPE_NAMES[target] + " event " + std::to_string(id);
  }

  Flag& find(const char* api, Pipe source, Pipe target, int id) {
    if (id < 0 || id >= EVENTS) refuse(api, "event id", "0 to 7", id);
    return flags_[source][target][id];
  }

  Clock issued_{};
  std::array<Clock, PIPES> known_{};
  Flag flags_[PIPES][PIPES][EVENTS];
};

}  // namespace emulated
