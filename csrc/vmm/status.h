// How calls of the drivers end: a status, and for a failure a sentence beside it.
#pragma once

#include <string>

namespace weave::vmm {

// The values are part of the binding: npu_weave/memory/native.py maps them to error codes.
enum class Status : int {
  kOk = 0,
  kInvalidArgument = 1,
  kOutOfMemory = 2,
  kOutOfAddressSpace = 3,
  kAlreadyMapped = 4,
  kNotMapped = 5,
  kInUse = 6,
  kNotFenced = 7,
  kForked = 8,
  kFailed = 9,
};

// What went wrong in the latest failed call of this thread, in words.
const std::string& last_error();

// Keeps the sentence for last_error() and returns `status`, so that a refusal is one line.
Status fail(Status status, const char* pattern, ...) __attribute__((format(printf, 2, 3)));

}  // namespace weave::vmm
