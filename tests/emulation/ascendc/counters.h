// What a launch executed, per core: the cost projection is made from it.
#pragma once

#include <cstdint>
#include <map>
#include <sstream>
#include <string>

namespace emulated {

struct Count {
  uint64_t instructions = 0;
  uint64_t repeats = 0;
};

struct Counters {
  std::map<std::string, Count> by_api;
  uint64_t bytes_from_gm = 0;
  uint64_t bytes_to_gm = 0;
  uint64_t bursts = 0;        // contiguous blocks of the copies between GM and the Unified Buffer
  uint64_t merged_pairs = 0;  // that MrgSort put out
  uint32_t ub_bytes = 0;      // the most that was laid out at a time

  void add(const char* api, uint64_t repeats) {
    Count& count = by_api[api];
    ++count.instructions;
    count.repeats += repeats;
  }

  // {"apis": {"Adds": [instructions, repeats], ...}, "bytes_from_gm": ..., ...}
  std::string json() const {
    std::ostringstream text;
    text << "{\"apis\": {";
    const char* comma = "";
    for (const auto& [api, count] : by_api) {
      text << comma << '"' << api << "\": [" << count.instructions << ", " << count.repeats << ']';
      comma = ", ";
    }
    text << "}, \"bytes_from_gm\": " << bytes_from_gm << ", \"bytes_to_gm\": " << bytes_to_gm
         << ", \"bursts\": " << bursts << ", \"merged_pairs\": " << merged_pairs << ", \"ub_bytes\": " << ub_bytes
         << '}';
    return text.str();
  }
};

}  // namespace emulated
