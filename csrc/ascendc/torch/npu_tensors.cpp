#include "npu_tensors.h"

#include <acl/acl_rt.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <utility>

namespace weave::ascendc {

void check_on_npu(const at::Tensor& tensor, const at::Device& device, const char* op, const char* name) {
  TORCH_CHECK(tensor.device() == device, op, ": ", name, " must be on ", device, ", got ", tensor.device());
}

void check_routing(const at::Tensor& token_slots, const at::Tensor& expert_map, std::int64_t tokens,
                   const at::Device& device, const char* op) {
  const std::pair<const at::Tensor&, const char*> both[] = {{token_slots, "token_slots"}, {expert_map, "expert_map"}};
  for (const auto& [tensor, name] : both) {
    check_on_npu(tensor, device, op, name);
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kInt, op, ": ", name, " must be int32, got ", tensor.scalar_type());
  }
  TORCH_CHECK_VALUE(token_slots.dim() == 1, op, ": token_slots must have one dimension, got ", token_slots.sizes());
  TORCH_CHECK_VALUE(expert_map.dim() == 2, op, ": expert_map must be [slots + 1, experts], got ", expert_map.sizes());
  TORCH_CHECK_VALUE(token_slots.size(0) >= tokens, op, ": token_slots must have at least one entry for each of the ",
                    tokens, " tokens, got ", token_slots.size(0));
}

std::int64_t vector_cores() {
  std::int32_t device = 0;
  TORCH_CHECK(aclrtGetDevice(&device) == ACL_SUCCESS, "aclrtGetDevice: there is no current device");
  std::int64_t cores = 0;
  TORCH_CHECK(aclrtGetDeviceInfo(device, ACL_DEV_ATTR_VECTOR_CORE_NUM, &cores) == ACL_SUCCESS && cores > 0,
              "aclrtGetDeviceInfo: device ", device, " does not say how many vector cores it has");
  return cores;
}

void enqueue(const char* op, std::function<void(void* stream)> start) {
  // Not stream(): that would wait until the task queue is empty.
  const aclrtStream stream = c10_npu::getCurrentNPUStream().stream(false);
  at_npu::native::OpCommand::RunOpApi(op, [stream, start = std::move(start)]() -> int {
    start(stream);
    return 0;
  });
}

}  // namespace weave::ascendc
