// npu_weave._C: the drivers, call by call. Statuses and errors become Python errors in npu_weave/memory/native.py.
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <tuple>

#include "../vmm/acl_device.h"
#include "../vmm/cuda_device.h"
#include "../vmm/driver.h"
#include "../vmm/host_device.h"
#include "memory_tensor.h"
#include "npu_tensor.h"
#include "row_bytes.h"

namespace py = pybind11;
using weave::vmm::AclDevice;
using weave::vmm::Address;
using weave::vmm::CudaDevice;
using weave::vmm::Device;
using weave::vmm::Driver;
using weave::vmm::HostDevice;
using weave::vmm::Page;
using weave::vmm::Stats;
using weave::vmm::Status;

namespace {

using Result = std::tuple<int, std::uint64_t>;  // status, and the value when the status is 0
using NoLock = py::call_guard<py::gil_scoped_release>;

template <typename Value, typename Call>
Result value_of(Call call) {
  Value value = 0;
  const Status status = call(&value);
  return {static_cast<int>(status), status == Status::kOk ? value : 0};
}

// Null when the device cannot be opened; last_error() says why.
std::shared_ptr<Driver> driver_of(std::unique_ptr<Device> device, std::size_t limit_bytes) {
  return device == nullptr ? nullptr : std::make_shared<Driver>(std::move(device), limit_bytes);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Stats>(module, "Stats")
      .def_readonly("pages", &Stats::pages)
      .def_readonly("mapped_pages", &Stats::mapped_pages)
      .def_readonly("huge_pages", &Stats::huge_pages)
      .def_readonly("reservations", &Stats::reservations)
      .def_readonly("reserved_bytes", &Stats::reserved_bytes);

  py::class_<Driver, std::shared_ptr<Driver>>(module, "Driver")
      .def("name", &Driver::name)
      .def("granularity", &Driver::granularity)
      .def(
          "reserve",
          [](Driver& self, std::size_t bytes) {
            return value_of<Address>([&](Address* out) { return self.reserve(bytes, out); });
          },
          NoLock())
      .def(
          "release", [](Driver& self, Address base) { return static_cast<int>(self.release(base)); }, NoLock())
      .def(
          "create_page", [](Driver& self) { return value_of<Page>([&](Page* out) { return self.create_page(out); }); },
          NoLock())
      .def(
          "destroy_page", [](Driver& self, Page page) { return static_cast<int>(self.destroy_page(page)); }, NoLock())
      .def(
          "map", [](Driver& self, Address address, Page page) { return static_cast<int>(self.map(address, page)); },
          NoLock())
      .def(
          "unmap", [](Driver& self, Address address) { return static_cast<int>(self.unmap(address)); }, NoLock())
      .def(
          "fence", [](Driver& self) { return static_cast<int>(self.fence()); }, NoLock())
      .def(
          "check_range",
          [](Driver& self, Address address, std::size_t bytes) {
            return static_cast<int>(self.check_range(address, bytes));
          },
          NoLock())
      .def("stats", &Driver::stats, NoLock());

  module.def("host_driver", [](std::size_t limit_bytes) { return driver_of(HostDevice::open(), limit_bytes); });
  module.def("cuda_driver",
             [](int device, std::size_t limit_bytes) { return driver_of(CudaDevice::open(device), limit_bytes); });
  module.def("acl_driver",
             [](int device, std::size_t limit_bytes) { return driver_of(AclDevice::open(device), limit_bytes); });
  module.def("memory_tensor", &weave::torch_binding::memory_tensor);
  module.def("npu_memory_tensor", &weave::torch_binding::npu_memory_tensor);
  module.def("same_bytes", &weave::torch_binding::same_bytes, NoLock());
  module.def("write_and_compare", &weave::torch_binding::write_and_compare, NoLock());
  module.def("copy_matrices", &weave::torch_binding::copy_matrices, NoLock());
  module.def("last_error", &weave::vmm::last_error);
}
