"""An emulated torch_npu: the same names, computed on the CPU, or refused by name. See README.md beside this package."""

from __future__ import annotations

from types import SimpleNamespace

from torch_npu import collectives, custom_operators, device, format_guards, import_hooks, npu
from torch_npu._C import _distributed_c10d as _distributed_c10d
from torch_npu.operators.activation import npu_swiglu
from torch_npu.operators.attention import (
    npu_attention_update,
    npu_fused_infer_attention_score,
    npu_fused_infer_attention_score_v2,
)
from torch_npu.operators.expert_parallel import npu_moe_distribute_combine_v2, npu_moe_distribute_dispatch_v2
from torch_npu.operators.formats import get_npu_format, npu_format_cast
from torch_npu.operators.grouped_matmul import npu_grouped_matmul
from torch_npu.operators.linear import _npu_matmul_add_fp32
from torch_npu.operators.mla import npu_kv_rmsnorm_rope_cache, npu_transpose_batchmatmul
from torch_npu.operators.moe_routing import (
    npu_moe_gating_top_k,
    npu_moe_init_routing_v2,
    npu_moe_token_permute,
    npu_moe_token_unpermute,
)
from torch_npu.operators.normalisation import npu_add_rms_norm, npu_rms_norm
from torch_npu.operators.paged_cache import (
    _npu_reshape_and_cache,
    npu_gather_pa_kv_cache,
    npu_paged_cache_load,
    npu_scatter_pa_kv_cache,
)
from torch_npu.operators.quantisation import npu_dynamic_quant, npu_quant_matmul
from torch_npu.operators.rotary import _npu_rotary_embedding, npu_interleave_rope, npu_rotary_mul
from torch_npu.operators.sampling import npu_top_k_top_p
from torch_npu.strict import NotEmulated, RefusedError

__all__ = [
    "RefusedError",
    "_npu_matmul_add_fp32",
    "_npu_reshape_and_cache",
    "_npu_rotary_embedding",
    "atb",
    "get_npu_format",
    "npu",
    "npu_add_rms_norm",
    "npu_attention_update",
    "npu_dynamic_quant",
    "npu_format_cast",
    "npu_fused_infer_attention_score",
    "npu_fused_infer_attention_score_v2",
    "npu_gather_pa_kv_cache",
    "npu_grouped_matmul",
    "npu_interleave_rope",
    "npu_kv_rmsnorm_rope_cache",
    "npu_moe_distribute_combine_v2",
    "npu_moe_distribute_dispatch_v2",
    "npu_moe_gating_top_k",
    "npu_moe_init_routing_v2",
    "npu_moe_token_permute",
    "npu_moe_token_unpermute",
    "npu_quant_matmul",
    "npu_rms_norm",
    "npu_rotary_mul",
    "npu_scatter_pa_kv_cache",
    "npu_swiglu",
    "npu_top_k_top_p",
    "npu_transpose_batchmatmul",
]

__version__ = "2.13.0+emulated"

atb = SimpleNamespace(npu_paged_cache_load=npu_paged_cache_load)


def __getattr__(name: str) -> NotEmulated:
    """Operators that nobody wrote: vllm-ascend asks which there are, and a device has them all."""
    if name.startswith(("npu_", "_npu_")):
        return NotEmulated(name)
    raise AttributeError(f"the emulated torch_npu has no {name}")


device.install(npu)
format_guards.install()
collectives.install()
custom_operators.install()
import_hooks.install()
