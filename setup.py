"""Builds the two extensions against the torch that is installed; no CANN, CUDA or vLLM is needed.

NPU_WEAVE_COMPILED=1 leaves alone those in the tree, for one more editable install of it with the same torch.
"""

import os

from setuptools import setup
from torch import __version__ as torch_version
from torch.utils.cpp_extension import BuildExtension, CppExtension

# The ABI of the extensions is that of one minor version of torch.
TORCH_MINOR = ".".join(torch_version.split(".")[:2])

# -fopenmp stays out of the link: the OpenMP runtime must be the one torch brings, which is there by then.
COMPILE = ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fopenmp", "-fvisibility=hidden"]

EXTENSIONS = {
    "npu_weave._C": [
        "csrc/vmm/acl_device.cpp",
        "csrc/vmm/address_space.cpp",
        "csrc/vmm/arena.cpp",
        "csrc/vmm/cuda_device.cpp",
        "csrc/vmm/driver.cpp",
        "csrc/vmm/host_device.cpp",
        "csrc/vmm/library.cpp",
        "csrc/vmm/status.cpp",
        "csrc/torch/memory_tensor.cpp",
        "csrc/torch/npu_tensor.cpp",
        "csrc/torch/row_bytes.cpp",
        "csrc/torch/vmm_module.cpp",
    ],
    "weave_ops._C": [
        "csrc/cpu/gating_reroute.cpp",
        "csrc/cpu/reroute.cpp",
        "csrc/torch/direct.cpp",
        "csrc/torch/ops_module.cpp",
    ],
}

setup(
    ext_modules=[
        CppExtension(name, sources, extra_compile_args={"cxx": COMPILE})
        for name, sources in EXTENSIONS.items()
        if os.environ.get("NPU_WEAVE_COMPILED") != "1"
    ],
    cmdclass={"build_ext": BuildExtension},
    install_requires=[
        f"torch=={TORCH_MINOR}.*",
        "safetensors",
        "pydantic>=2",
        "typer",
        "rich",
        "tqdm",
        "blake3",
        "fsspec",
        "filelock",
        "prometheus_client",
        "numpy",
        "packaging",
    ],
)
