"""The shape of a base model's routed experts, from its config alone; no model code runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from npu_weave.adapters.json_file import read_json_object
from npu_weave.adapters.tensor_names import Projection, Spelling, TensorKey, expert_name
from npu_weave.errors import CheckpointError, UnsupportedError

SUPPORTED_MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "mixtral", "olmoe", "qwen3_moe")

# Several releases of transformers name the same number differently.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_WIDTH = {"mixtral": "intermediate_size", "olmoe": "intermediate_size"}
_FIRST_DENSE = {"deepseek_v2": 0, "deepseek_v3": 3}


@dataclass(frozen=True)
class MoEGeometry:
    """What an adapter must fit: layers, experts, shapes and dtype of the base model's routed experts.

    Attributes:
        model_type: as in config.json, one of `SUPPORTED_MODEL_TYPES`.
        num_layers: all decoder layers, dense ones included.
        moe_layers: model layer indices that have routed experts, ascending.
        num_experts: routed experts in each MoE layer (M).
        top_k: experts a token is routed to.
        hidden_size: H.
        moe_intermediate_size: width of one expert (I).
        dtype: of the expert weights.
    """

    model_type: str
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    hidden_size: int
    moe_intermediate_size: int
    dtype: torch.dtype

    @classmethod
    def from_model_dir(cls, path: str | Path, *, dtype: torch.dtype | None = None) -> Self:
        """Reads `config.json` of a Hugging Face model directory; see `from_config`."""
        return cls.from_config(read_model_config(Path(path)), dtype=dtype)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, dtype: torch.dtype | None = None) -> Self:
        """Reads a config as a plain mapping (config.json, or `PretrainedConfig.to_dict()`).

        Args:
            config: the model's config.
            dtype: of the weights as served, where that differs from the config's.

        Raises:
            UnsupportedError: MODEL_TYPE_UNSUPPORTED, MODEL_QUANTIZED, MODEL_NOT_MOE.
            CheckpointError: CHECKPOINT_CONFIG_INVALID: a number is missing or senseless.
        """
        model_type = config.get("model_type")
        if model_type not in SUPPORTED_MODEL_TYPES:
            raise UnsupportedError(
                "MODEL_TYPE_UNSUPPORTED",
                "model_type in the base model's config",
                expected=f"one of {', '.join(SUPPORTED_MODEL_TYPES)}",
                got=repr(model_type),
            )
        if config.get("quantization_config"):
            raise UnsupportedError(
                "MODEL_QUANTIZED",
                "quantization_config in the base model's config",
                expected="unquantized weights",
                got=str(config["quantization_config"])[:200],
                remedy="use the bfloat16 or float16 checkpoint of this model",
            )
        num_layers = _positive(config, "num_hidden_layers")
        moe_layers = _moe_layers(model_type, config, num_layers)
        if not moe_layers:
            raise UnsupportedError("MODEL_NOT_MOE", f"{model_type} config", expected="a layer with routed experts")
        geometry = cls(
            model_type=model_type,
            num_layers=num_layers,
            moe_layers=moe_layers,
            num_experts=_positive(config, *_NUM_EXPERTS),
            top_k=_positive(config, "num_experts_per_tok"),
            hidden_size=_positive(config, "hidden_size"),
            moe_intermediate_size=_positive(config, _WIDTH.get(model_type, "moe_intermediate_size")),
            dtype=dtype or _dtype(config),
        )
        if geometry.top_k > geometry.num_experts:
            raise _invalid("num_experts_per_tok", f"at most {geometry.num_experts}", geometry.top_k)
        return geometry

    @property
    def spelling(self) -> Spelling:
        """How this model's checkpoints spell expert tensors."""
        return "block_sparse_moe" if self.model_type == "mixtral" else "mlp"

    @property
    def accepted_spellings(self) -> tuple[Spelling, ...]:
        """The spellings an adapter of this model may use."""
        return ("block_sparse_moe", "mlp") if self.model_type == "mixtral" else ("mlp",)

    def tensor_name(self, layer: int, expert: int, projection: Projection) -> str:
        """Name of an expert tensor in this model's checkpoints."""
        return expert_name(TensorKey(layer, expert, projection), self.spelling)

    def router_names(self, layer: int) -> tuple[str, ...]:
        """Names of the tensors that route tokens in a MoE layer; the second may be absent."""
        gate = f"model.layers.{layer}.{self.spelling}.gate"
        return (f"{gate}.weight", f"{gate}.e_score_correction_bias")

    def shape(self, projection: Projection) -> tuple[int, int]:
        """Shape of one expert's projection: gate and up `[I, H]`, down `[H, I]`."""
        if projection == "down":
            return (self.hidden_size, self.moe_intermediate_size)
        return (self.moe_intermediate_size, self.hidden_size)

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one expert's three projections."""
        return 3 * self.hidden_size * self.moe_intermediate_size * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; dtype by name, e.g. `"bfloat16"`."""
        return asdict(self) | {"moe_layers": list(self.moe_layers), "dtype": dtype_name(self.dtype)}


def read_model_config(path: Path) -> dict[str, Any]:
    """`config.json` in the model directory `path`. Raises CheckpointError."""
    if not path.is_dir():
        raise CheckpointError(
            "CHECKPOINT_NOT_FOUND", str(path), expected="the directory of a Hugging Face checkpoint", got="no directory"
        )
    return read_json_object(path / "config.json")


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as configs write it, e.g. `"bfloat16"`."""
    return str(dtype).removeprefix("torch.")


def _moe_layers(model_type: str, config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    if model_type in _FIRST_DENSE:
        first = _count(config, "first_k_dense_replace", _FIRST_DENSE[model_type])
        frequency = _count(config, "moe_layer_freq", 1, least=1)
        return tuple(layer for layer in range(first, num_layers) if layer % frequency == 0)
    if model_type == "qwen3_moe":
        step = _count(config, "decoder_sparse_step", 1, least=1)
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list | tuple) or not all(type(layer) is int for layer in dense):
            raise _invalid("mlp_only_layers", "a list of layer indices", dense)
        return tuple(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0)
    return tuple(range(num_layers))


def _count(config: Mapping[str, Any], name: str, default: int, least: int = 0) -> int:
    value = config.get(name)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise _invalid(name, f"an integer of at least {least}", value)
    return value


def _positive(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if value is not None:
            if type(value) is not int or not 0 < value < 2**31:
                raise _invalid(name, "a positive integer", value)
            return value
    raise _invalid(" or ".join(names), "a positive integer", "nothing")


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    value = config.get("dtype") or config.get("torch_dtype")
    if isinstance(value, torch.dtype):
        return value
    known = {dtype_name(dtype): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    if isinstance(value, str) and value.removeprefix("torch.") in known:
        return known[value.removeprefix("torch.")]
    raise _invalid("dtype", f"one of {', '.join(known)}", value)


def _invalid(name: str, expected: str, got: object) -> CheckpointError:
    thing = f"{name} in the model's config"
    return CheckpointError("CHECKPOINT_CONFIG_INVALID", thing, expected=expected, got=str(got))
