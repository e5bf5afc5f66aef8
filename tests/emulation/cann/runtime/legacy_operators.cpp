// The older way to run an operator by its name. Nothing is computed this way: what torch_npu describes is taken in, so
// that the refusal can name the operator.
#include <cstdio>
#include <vector>

#include "acl/acl_op_compiler.h"
#include "call.h"
#include "device.h"

struct aclTensorDesc {
  aclDataType type;
  std::vector<int64_t> sizes;
  aclFormat format;
};

struct aclDataBuffer {};
struct aclopAttr {};

namespace {

aclError refuse_operator(const char* type) {
  std::fprintf(stderr, "emulated CANN: operator %s is not emulated\n", type);
  const auto refuse = [=] {
    cann::current_device().fault();  // torch_npu goes on with what was in the output before: the next wait must fail
    throw cann::Refusal(ACL_ERROR_OP_NOT_FOUND, cann::text("operator ", type, " is not emulated"));
  };
  return cann::answer(refuse, "aclopCompileAndExecute");
}

}  // namespace

EMULATED aclTensorDesc* aclCreateTensorDesc(aclDataType type, int dims, const int64_t* sizes, aclFormat format) {
  return new aclTensorDesc{type, {sizes, sizes + dims}, format};
}

EMULATED void aclDestroyTensorDesc(const aclTensorDesc* description) { delete description; }
EMULATED aclDataType aclGetTensorDescType(const aclTensorDesc* description) { return description->type; }
EMULATED aclFormat aclGetTensorDescFormat(const aclTensorDesc* description) { return description->format; }
EMULATED size_t aclGetTensorDescNumDims(const aclTensorDesc* description) { return description->sizes.size(); }

EMULATED aclError aclGetTensorDescDimV2(const aclTensorDesc* description, size_t index, int64_t* size) {
  return cann::answer([=] {
    cann::require(index < description->sizes.size(), cann::kBadArgument, "there is no dimension ", index);
    *size = description->sizes[index];
  });
}

EMULATED void aclSetTensorDescName(aclTensorDesc*, const char*) {}
EMULATED aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
EMULATED aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }
EMULATED aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) { return ACL_SUCCESS; }
EMULATED aclError aclSetTensorConst(aclTensorDesc*, void*, size_t) { return ACL_SUCCESS; }

EMULATED aclDataBuffer* aclCreateDataBuffer(void*, size_t) { return new aclDataBuffer; }

EMULATED aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete buffer;
  return ACL_SUCCESS;
}

EMULATED aclopAttr* aclopCreateAttr() { return new aclopAttr; }
EMULATED void aclopDestroyAttr(const aclopAttr* attributes) { delete attributes; }
EMULATED aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrString(aclopAttr*, const char*, const char*) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }
EMULATED aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) {
  return ACL_SUCCESS;
}

EMULATED aclError aclopCompileAndExecute(const char* type, int, const aclTensorDesc* const[],
                                         const aclDataBuffer* const[], int, const aclTensorDesc* const[],
                                         aclDataBuffer* const[], const aclopAttr*, aclopEngineType, aclopCompileType,
                                         const char*, aclrtStream) {
  return refuse_operator(type);
}

EMULATED aclError aclopCompileAndExecuteV2(const char* type, int, aclTensorDesc*[], aclDataBuffer*[], int,
                                           aclTensorDesc*[], aclDataBuffer*[], aclopAttr*, aclopEngineType,
                                           aclopCompileType, const char*, aclrtStream) {
  return refuse_operator(type);
}
