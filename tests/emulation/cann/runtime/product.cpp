// Which chip and which CANN release this machine says it is.
#include <algorithm>
#include <cstring>

#include "call.h"
#include "device.h"
#include "settings.h"

using cann::answer;
using cann::kBadArgument;
using cann::require;
using cann::settings;

namespace {

constexpr int64_t kCores = 24;

void write_version(char* to, size_t most) {
  const std::string& version = settings().version;
  require(version.size() < most, kBadArgument, "EMULATED_CANN_VERSION is longer than ", most - 1, " characters");
  std::copy_n(version.c_str(), version.size() + 1, to);
}

}  // namespace

EMULATED const char* aclrtGetSocName() { return settings().soc.c_str(); }

EMULATED aclError aclGetDeviceCapability(uint32_t id, aclDeviceInfo info, int64_t* value) {
  return answer([=] {
    require(value, kBadArgument, "value is null");
    cann::device(id);
    const bool known = info == ACL_DEVICE_INFO_AI_CORE_NUM || info == ACL_DEVICE_INFO_VECTOR_CORE_NUM;
    require(known, kBadArgument, "device info ", info, " is not emulated");
    *value = kCores;
  });
}

EMULATED aclError aclsysGetVersionStr(char* package, char* version) {
  return answer([=] {
    require(package && version, kBadArgument, "pkgName or versionStr is null");
    write_version(version, ACL_PKG_VERSION_MAX_SIZE);
  });
}

EMULATED aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* version) {
  return answer([=] {
    require(version, kBadArgument, "version is null");
    *version = {};
    write_version(version->version, sizeof version->version);
  });
}
