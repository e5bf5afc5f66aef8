// Operators that take many elements to one, products of matrices among them.
#include "fractal_nz.h"
#include "operator.h"

namespace cann {

// The last argument is the precision wanted of the cube unit; here it is always ATen's.
void Matmul(In self, In other, Out out, int8_t) { out.copy_(at::matmul(self, other)); }
void Mm(In self, In other, Out out, int8_t) { out.copy_(at::matmul(self, other)); }
void BatchMatMul(In self, In other, Out out, int8_t) { out.copy_(at::bmm(self, other)); }
void MatmulWeightNz(In self, Stored weight, Out out, int8_t) { out.copy_(at::matmul(self, from_any_format(weight))); }

void ReduceSum(In self, Integers dims, bool keep, at::ScalarType dtype, Out out) {
  out.copy_(at::sum(self, dims, keep, dtype));
}

void Mean(In self, Integers dims, bool keep, at::ScalarType dtype, Out out) {
  out.copy_(at::mean(self, dims, keep, dtype));
}

void Cumsum(In self, int64_t dim, at::ScalarType dtype, Out out) { out.copy_(at::cumsum(self, dim, dtype)); }
void Softmax(In self, int64_t dim, Out out) { out.copy_(at::softmax(self, dim)); }
void Equal(In self, In other, Out out) { out.fill_(at::equal(self, other)); }
void All(In self, Integers dims, bool keep, Out out) {
  out.copy_(dims.empty() ? at::all(self) : at::all(self, dims, keep));
}
void Any(In self, Integers dims, bool keep, Out out) {
  out.copy_(dims.empty() ? at::any(self) : at::any(self, dims, keep));
}
void Max(In self, Out out) { out.copy_(at::max(self)); }
void Min(In self, Out out) { out.copy_(at::min(self)); }

}  // namespace cann

EMULATED_OPERATOR(Matmul)
EMULATED_OPERATOR(Mm)
EMULATED_OPERATOR(BatchMatMul)
EMULATED_OPERATOR(MatmulWeightNz)
EMULATED_OPERATOR(ReduceSum)
EMULATED_OPERATOR(Mean)
EMULATED_OPERATOR(Cumsum)
EMULATED_OPERATOR(Softmax)
EMULATED_OPERATOR(Equal)
EMULATED_OPERATOR(All)
EMULATED_OPERATOR(Any)
EMULATED_OPERATOR(Max)
EMULATED_OPERATOR(Min)
