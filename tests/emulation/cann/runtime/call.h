// The frame every exported call runs in: counted, traced, failed on request, and answered with a code.
#pragma once

#include <functional>
#include <string>

#include "acl/acl.h"
#include "refusal.h"

// What torch_npu calls: the signature is the one its headers declare, or the compiler says so.
#define EMULATED extern "C"

namespace cann {

// Runs `body` as the call `name`: ACL_SUCCESS, or the code of the failure injected here or of the Refusal thrown.
// The reason stays in `last_reason()`. `name` is by default the exported function that this is written in.
aclError answer(const std::function<void()>& body, const char* name = __builtin_FUNCTION());

// Why the latest call of this thread that failed did so.
const std::string& last_reason();

// The code of that call, ACL_SUCCESS if none failed since `forget_last_code`.
aclError last_code();
void forget_last_code();

}  // namespace cann
