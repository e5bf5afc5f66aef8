// Operators that treat each element by itself.
#include "operator.h"

namespace cann {

void InplaceCopy(Out self, In source) { self.copy_(source); }
void InplaceZero(Out self) { self.zero_(); }
void InplaceOne(Out self) { self.fill_(1); }
void InplaceFillScalar(Out self, Number value) { self.fill_(value); }
void InplaceFillTensor(Out self, In value) { self.fill_(value); }
void Cast(In self, at::ScalarType, Out out) { out.copy_(self); }

void Add(In self, In other, Number alpha, Out out) { out.copy_(at::add(self, other, alpha)); }
void Adds(In self, Number other, Number alpha, Out out) { out.copy_(at::add(self, other, alpha)); }
void InplaceAdd(Out self, In other, Number alpha) { self.add_(other, alpha); }
void InplaceAdds(Out self, Number other, Number alpha) { self.add_(other, alpha); }
void Sub(In self, In other, Number alpha, Out out) { out.copy_(at::sub(self, other, alpha)); }
void Subs(In self, Number other, Number alpha, Out out) { out.copy_(at::sub(self, other, alpha)); }
void Rsub(In self, In other, Number alpha, Out out) { out.copy_(at::rsub(self, other, alpha)); }
void Rsubs(In self, Number other, Number alpha, Out out) { out.copy_(at::rsub(self, other, alpha)); }
void Mul(In self, In other, Out out) { out.copy_(at::mul(self, other)); }
void Muls(In self, Number other, Out out) { out.copy_(at::mul(self, other)); }
void InplaceMul(Out self, In other) { self.mul_(other); }
void InplaceMuls(Out self, Number other) { self.mul_(other); }
void Div(In self, In other, Out out) { out.copy_(at::div(self, other)); }
void Divs(In self, Number other, Out out) { out.copy_(at::div(self, other)); }
void Neg(In self, Out out) { out.copy_(at::neg(self)); }
void Abs(In self, Out out) { out.copy_(at::abs(self)); }
void Silu(In self, Out out) { out.copy_(at::silu(self)); }

void EqTensor(In self, In other, Out out) { out.copy_(at::eq(self, other)); }
void EqScalar(In self, Number other, Out out) { out.copy_(at::eq(self, other)); }
void NeTensor(In self, In other, Out out) { out.copy_(at::ne(self, other)); }
void NeScalar(In self, Number other, Out out) { out.copy_(at::ne(self, other)); }
void LtTensor(In self, In other, Out out) { out.copy_(at::lt(self, other)); }
void LtScalar(In self, Number other, Out out) { out.copy_(at::lt(self, other)); }
void GtTensor(In self, In other, Out out) { out.copy_(at::gt(self, other)); }
void GtScalar(In self, Number other, Out out) { out.copy_(at::gt(self, other)); }
void GeTensor(In self, In other, Out out) { out.copy_(at::ge(self, other)); }
void GeScalar(In self, Number other, Out out) { out.copy_(at::ge(self, other)); }
void IsClose(In self, In other, double rtol, double atol, bool equal_nan, Out out) {
  out.copy_(at::isclose(self, other, rtol, atol, equal_nan));
}

void SWhere(In condition, In self, In other, Out out) { out.copy_(at::where(condition, self, other)); }

}  // namespace cann

EMULATED_OPERATOR(InplaceCopy)
EMULATED_OPERATOR(InplaceZero)
EMULATED_OPERATOR(InplaceOne)
EMULATED_OPERATOR(InplaceFillScalar)
EMULATED_OPERATOR(InplaceFillTensor)
EMULATED_OPERATOR(Cast)
EMULATED_OPERATOR(Add)
EMULATED_OPERATOR(Adds)
EMULATED_OPERATOR(InplaceAdd)
EMULATED_OPERATOR(InplaceAdds)
EMULATED_OPERATOR(Sub)
EMULATED_OPERATOR(Subs)
EMULATED_OPERATOR(Rsub)
EMULATED_OPERATOR(Rsubs)
EMULATED_OPERATOR(Mul)
EMULATED_OPERATOR(Muls)
EMULATED_OPERATOR(InplaceMul)
EMULATED_OPERATOR(InplaceMuls)
EMULATED_OPERATOR(Div)
EMULATED_OPERATOR(Divs)
EMULATED_OPERATOR(Neg)
EMULATED_OPERATOR(Abs)
EMULATED_OPERATOR(Silu)
EMULATED_OPERATOR(EqTensor)
EMULATED_OPERATOR(EqScalar)
EMULATED_OPERATOR(NeTensor)
EMULATED_OPERATOR(NeScalar)
EMULATED_OPERATOR(LtTensor)
EMULATED_OPERATOR(LtScalar)
EMULATED_OPERATOR(GtTensor)
EMULATED_OPERATOR(GtScalar)
EMULATED_OPERATOR(GeTensor)
EMULATED_OPERATOR(GeScalar)
EMULATED_OPERATOR(IsClose)
EMULATED_OPERATOR(SWhere)
