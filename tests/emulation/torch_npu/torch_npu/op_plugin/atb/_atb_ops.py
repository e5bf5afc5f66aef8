"""How they are registered."""


def _register_atb_extensions() -> None:
    """They are part of torch_npu here and need no registering."""
