// The values that torch_npu hands to operators, by the names that the C interface has for them.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "acl/acl.h"

// A view of device memory: `sizes` with strides, and under it a storage of `storage_sizes` in `format` from `base` on.
struct aclTensor {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t offset;  // in elements
  std::vector<int64_t> storage_sizes;
  at::ScalarType dtype;
  aclFormat format;
  void* base;

  // The view as it is; refuses a storage that is in FRACTAL_NZ, for strides say nothing there.
  at::Tensor plain() const;

  // The whole storage.
  at::Tensor storage() const;
};

struct aclScalar {
  at::Scalar value;
};

struct aclIntArray {
  std::vector<int64_t> values;
};

struct aclFloatArray {
  std::vector<float> values;
};

struct aclBoolArray {
  std::vector<bool> values;
};

// Owns its tensors.
struct aclTensorList {
  std::vector<const aclTensor*> values;
};

struct aclScalarList {
  std::vector<const aclScalar*> values;
};

namespace cann {

// Refuses a type that ATen has no equal of.
at::ScalarType dtype_of(aclDataType type);

}  // namespace cann
