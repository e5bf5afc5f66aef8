// What a kernel did against a documented rule.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace emulated {

// Ends the launch; its text is "<API>: <what>: expected <expected>, got <got>".
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename Expected, typename Got>
[[noreturn]] void refuse(const char* api, const char* what, const Expected& expected, const Got& got) {
  std::ostringstream text;
  text << api << ": " << what << ": expected " << expected << ", got " << got;
  throw Violation(text.str());
}

template <typename Got>
void require_at_most(const char* api, const char* what, Got limit, Got got) {
  if (got > limit) refuse(api, what, "at most " + std::to_string(limit), got);
}

template <typename Number>
std::string range(Number begin, Number end) {
  return "[" + std::to_string(begin) + ", " + std::to_string(end) + ")";
}

}  // namespace emulated
