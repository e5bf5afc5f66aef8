// Operators that move elements by index, and those that make indices.
#include "operator.h"

namespace cann {
namespace {

// A missing index takes the whole dimension, as in `tensor[:, index]`. torch_npu puts an empty float tensor there.
c10::List<std::optional<at::Tensor>> index_list(Tensors indices) {
  c10::List<std::optional<at::Tensor>> list;
  for (const at::Tensor& index : indices) {
    const bool missing = !index.defined() || index.is_floating_point();
    list.push_back(missing ? std::nullopt : std::optional(index));
  }
  return list;
}

}  // namespace

void Arange(Number start, Number end, Number step, Out out) {
  at::arange_out(const_cast<at::Tensor&>(out), start, end, step);
}
void IndexSelect(In self, int64_t dim, In index, Out out) { out.copy_(at::index_select(self, dim, index)); }
void Index(In self, Tensors indices, Out out) { out.copy_(at::index(self, index_list(indices))); }
void Cat(Tensors parts, int64_t dim, Out out) { out.copy_(at::cat(parts, dim)); }
void Stack(Tensors parts, int64_t dim, Out out) { out.copy_(at::stack(parts, dim)); }
void Gather(In self, int64_t dim, In index, Out out) { out.copy_(at::gather(self, dim, index)); }

void IndexPutImpl(Out self, Tensors indices, In values, bool accumulate, bool) {
  self.index_put_(index_list(indices), values, accumulate);
}

void Scatter(In self, int64_t dim, In index, In source, int64_t reduce, Out out) {
  constexpr int64_t kAssign = 0;
  TORCH_CHECK(reduce == kAssign, "aclnnScatter is emulated without a reduction only");
  out.copy_(at::scatter(self, dim, index, source));
}

void Sort(In self, bool stable, int64_t dim, bool descending, Out values, Out indices) {
  const auto [sorted, order] = at::sort(self, stable, dim, descending);
  values.copy_(sorted);
  indices.copy_(order);
}

void Argsort(In self, int64_t dim, bool descending, Out out) { out.copy_(at::argsort(self, dim, descending)); }

void Topk(In self, int64_t k, int64_t dim, bool largest, bool sorted, Out values, Out indices) {
  const auto [top, order] = at::topk(self, k, dim, largest, sorted);
  values.copy_(top);
  indices.copy_(order);
}

}  // namespace cann

EMULATED_OPERATOR(Arange)
EMULATED_OPERATOR(IndexSelect)
EMULATED_OPERATOR(Index)
EMULATED_OPERATOR(Cat)
EMULATED_OPERATOR(Stack)
EMULATED_OPERATOR(Gather)
EMULATED_OPERATOR(IndexPutImpl)
EMULATED_OPERATOR(Scatter)
EMULATED_OPERATOR(Sort)
EMULATED_OPERATOR(Argsort)
EMULATED_OPERATOR(Topk)
