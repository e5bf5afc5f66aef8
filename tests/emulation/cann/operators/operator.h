// How a function on tensors becomes an operator of libopapi.
//
// torch_npu calls every operator in two steps: `aclnnNameGetWorkspaceSize(arguments, &bytes, &executor)` says what is
// to be computed, `aclnnName(workspace, bytes, executor, stream)` puts it on a stream. Here the first keeps the
// function with its arguments, and the second makes it a task of the stream. To add an operator, write
//
//   void Add(In self, In other, Number alpha, Out out) { out.copy_(at::add(self, other, alpha)); }
//   EMULATED_OPERATOR(Add)
//
// with the parameters in the order in which CANN documents those of aclnnAddGetWorkspaceSize.
#pragma once

#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "call.h"
#include "values.h"

namespace cann {

using In = const at::Tensor&;
using Out = const at::Tensor&;  // written to
using Number = const at::Scalar&;
using Tensors = const std::vector<at::Tensor>&;
using Integers = const std::vector<int64_t>&;
using Stored = const aclTensor&;  // with its storage and format, for operators that know FRACTAL_NZ

// What a parameter is on the C side, and how the C value is taken.
template <typename Value>
struct Parameter {
  using Passed = Value;
  static Value take(Value value) { return value; }
};

template <>
struct Parameter<at::Tensor> {
  using Passed = const aclTensor*;
  static at::Tensor take(Passed tensor) { return tensor ? tensor->plain() : at::Tensor(); }
};

template <>
struct Parameter<aclTensor> {
  using Passed = const aclTensor*;
  static aclTensor take(Passed tensor) { return *tensor; }
};

template <>
struct Parameter<at::Scalar> {
  using Passed = const aclScalar*;
  static at::Scalar take(Passed scalar) { return scalar->value; }
};

template <>
struct Parameter<at::ScalarType> {
  using Passed = aclDataType;
  static at::ScalarType take(Passed type) { return dtype_of(type); }
};

template <>
struct Parameter<std::vector<int64_t>> {
  using Passed = const aclIntArray*;
  static std::vector<int64_t> take(Passed array) { return array ? array->values : std::vector<int64_t>(); }
};

template <>
struct Parameter<std::vector<at::Tensor>> {
  using Passed = const aclTensorList*;
  static std::vector<at::Tensor> take(Passed list) {
    std::vector<at::Tensor> tensors;
    for (const aclTensor* tensor : list->values) tensors.push_back(Parameter<at::Tensor>::take(tensor));
    return tensors;
  }
};

}  // namespace cann

// What was asked for: the function with its arguments, and the addresses that it will work on.
struct aclOpExecutor {
  std::function<void()> compute;
  std::vector<const void*> addresses;
};

namespace cann {

inline void note_address(std::vector<const void*>& addresses, const aclTensor* tensor) {
  if (tensor && c10::multiply_integers(tensor->sizes) > 0) addresses.push_back(tensor->base);
}

inline void note_address(std::vector<const void*>& addresses, const aclTensorList* list) {
  for (const aclTensor* tensor : list->values) note_address(addresses, tensor);
}

template <typename Other>
void note_address(std::vector<const void*>&, const Other&) {}

// Like `answer`, and a refusal takes the current device with it: torch_npu learns of it on a thread of its own and goes
// on with what was in the output before, so the next wait must fail.
aclError answer_or_fault(const char* name, const std::function<void()>& body);

template <auto function>
struct Operator;

template <typename... Parameters, void (*function)(Parameters...)>
struct Operator<function> {
  static const char* const name;

  static aclError plan(typename Parameter<std::decay_t<Parameters>>::Passed... passed, uint64_t* workspace_bytes,
                       aclOpExecutor** executor) {
    const auto keep = [&] {
      std::vector<const void*> addresses;
      (note_address(addresses, passed), ...);
      std::tuple<std::decay_t<Parameters>...> arguments{Parameter<std::decay_t<Parameters>>::take(passed)...};
      *workspace_bytes = 0;
      *executor = new aclOpExecutor{[arguments] { std::apply(function, arguments); }, std::move(addresses)};
    };
    return answer_or_fault(name, keep);
  }
};

using AnyFunction = void (*)();

// Puts what was planned on the stream, and frees the executor. Refuses arguments in host memory or on another device.
aclError launch(const char* name, aclOpExecutor* executor, aclrtStream stream);

}  // namespace cann

// Exports the function `Name` of namespace cann as the two calls of aclnnName. The signature of the first follows from
// the function's, so it is the linker (ifunc) that binds the exported name to the right `plan`.
#define EMULATED_OPERATOR(Name)                                                        \
  template <>                                                                          \
  const char* const cann::Operator<&cann::Name>::name = "aclnn" #Name;                 \
  extern "C" {                                                                         \
  cann::AnyFunction plan_of_##Name() {                                                 \
    return reinterpret_cast<cann::AnyFunction>(&cann::Operator<&cann::Name>::plan);    \
  }                                                                                    \
  void aclnn##Name##GetWorkspaceSize() __attribute__((ifunc("plan_of_" #Name)));       \
  aclError aclnn##Name(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) { \
    return cann::launch("aclnn" #Name, executor, stream);                              \
  }                                                                                    \
  }
