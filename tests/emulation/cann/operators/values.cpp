#include "values.h"

#include "call.h"

at::Tensor aclTensor::plain() const {
  cann::require(format != ACL_FORMAT_FRACTAL_NZ, ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
                "this operator is not emulated for tensors in FRACTAL_NZ");
  void* const first = static_cast<char*>(base) + offset * static_cast<int64_t>(c10::elementSize(dtype));
  return at::from_blob(first, sizes, strides, at::TensorOptions(dtype));
}

at::Tensor aclTensor::storage() const { return at::from_blob(base, storage_sizes, at::TensorOptions(dtype)); }

namespace cann {

at::ScalarType dtype_of(aclDataType type) {
  switch (type) {
    case ACL_FLOAT:
      return at::kFloat;
    case ACL_FLOAT16:
      return at::kHalf;
    case ACL_BF16:
      return at::kBFloat16;
    case ACL_DOUBLE:
      return at::kDouble;
    case ACL_BOOL:
      return at::kBool;
    case ACL_UINT8:
      return at::kByte;
    case ACL_INT8:
      return at::kChar;
    case ACL_INT16:
      return at::kShort;
    case ACL_INT32:
      return at::kInt;
    case ACL_INT64:
      return at::kLong;
    default:
      throw Refusal(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, text("data type ", type, " is not emulated"));
  }
}

namespace {

// A null pointer is how these calls say that they refuse.
template <typename Value, typename Make>
Value* made(const char* name, Make make) {
  Value* value = nullptr;
  answer([&] { value = new Value(make()); }, name);
  return value;
}

template <typename List, typename Value>
List* made_of(const char* name, const Value* values, uint64_t count) {
  return made<List>(name, [&] { return List{std::vector(values, values + count)}; });
}

template <typename Value>
int destroyed(const Value* value) {
  delete value;
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace cann

using cann::destroyed;
using cann::dtype_of;
using cann::made;
using cann::made_of;

EMULATED aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dims, aclDataType type, const int64_t* strides,
                                    int64_t offset, aclFormat format, const int64_t* storage_sizes,
                                    uint64_t storage_dims, void* base) {
  return made<aclTensor>("aclCreateTensor", [&] {
    return aclTensor{{sizes, sizes + dims},
                     {strides, strides + dims},
                     offset,
                     {storage_sizes, storage_sizes + storage_dims},
                     dtype_of(type),
                     format,
                     base};
  });
}

EMULATED aclScalar* aclCreateScalar(void* value, aclDataType type) {
  return made<aclScalar>("aclCreateScalar",
                         [&] { return aclScalar{at::from_blob(value, {}, at::TensorOptions(dtype_of(type))).item()}; });
}

EMULATED aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t count) {
  return made_of<aclIntArray>("aclCreateIntArray", values, count);
}

EMULATED aclFloatArray* aclCreateFloatArray(const float* values, uint64_t count) {
  return made_of<aclFloatArray>("aclCreateFloatArray", values, count);
}

EMULATED aclBoolArray* aclCreateBoolArray(const bool* values, uint64_t count) {
  return made_of<aclBoolArray>("aclCreateBoolArray", values, count);
}

EMULATED aclTensorList* aclCreateTensorList(const aclTensor* const* values, uint64_t count) {
  return made_of<aclTensorList>("aclCreateTensorList", values, count);
}

EMULATED aclScalarList* aclCreateScalarList(const aclScalar* const* values, uint64_t count) {
  return made_of<aclScalarList>("aclCreateScalarList", values, count);
}

EMULATED int aclDestroyTensor(const aclTensor* tensor) { return destroyed(tensor); }
EMULATED int aclDestroyScalar(const aclScalar* scalar) { return destroyed(scalar); }
EMULATED int aclDestroyIntArray(const aclIntArray* array) { return destroyed(array); }
EMULATED int aclDestroyFloatArray(const aclFloatArray* array) { return destroyed(array); }
EMULATED int aclDestroyBoolArray(const aclBoolArray* array) { return destroyed(array); }

EMULATED int aclDestroyTensorList(const aclTensorList* list) {
  if (list)
    for (const aclTensor* tensor : list->values) delete tensor;
  return destroyed(list);
}

EMULATED int aclDestroyScalarList(const aclScalarList* list) {
  if (list)
    for (const aclScalar* scalar : list->values) delete scalar;
  return destroyed(list);
}
