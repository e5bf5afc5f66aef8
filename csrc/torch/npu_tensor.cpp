#include "npu_tensor.h"

#include <dlfcn.h>

#include <functional>

#include "memory_tensor.h"

namespace weave::torch_binding {
namespace {

// at_npu::native::from_blob of torch_npu/csrc/aten/common/from_blob.h. A tensor made by at::from_blob would not do: its
// storage lacks the format description that torch_npu reads.
using FromBlob = at::Tensor(void*, at::IntArrayRef, std::function<void(void*)>, const at::TensorOptions&,
                            std::optional<c10::Device>);
constexpr char kFromBlob[] =
    "_ZN6at_npu6native9from_blobEPvN3c108ArrayRefIlEESt8functionIFvS1_EERKNS2_13TensorOptionsESt8optionalINS2_"
    "6DeviceEE";

FromBlob* from_blob() {
  void* library = dlopen("libtorch_npu.so", RTLD_LAZY | RTLD_NOLOAD);
  return library == nullptr ? nullptr : reinterpret_cast<FromBlob*>(dlsym(library, kFromBlob));
}

}  // namespace

std::optional<at::Tensor> npu_memory_tensor(std::uintptr_t address, std::size_t bytes, pybind11::object owner,
                                            c10::Device device) {
  FromBlob* const make = from_blob();
  if (make == nullptr) return std::nullopt;
  PyObject* held = owner.release().ptr();
  return make(
      reinterpret_cast<void*>(address), {static_cast<std::int64_t>(bytes)}, [held](void*) { drop_owner(held); },
      at::TensorOptions().dtype(at::kByte).device(device), device);
}

}  // namespace weave::torch_binding
