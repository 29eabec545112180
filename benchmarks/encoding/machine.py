"""What was measured on: processor, versions, and the machine's own ceiling, a plain matrix product.

The ceiling is the best of the kernels PyTorch offers at rows x 1024 x 4096, in each precision the hardware multiplies;
it is timed in the same rounds as the peers, so that a busy neighbour slows both.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

from udever.model.int8 import FBGEMM, INT8_MAX, ONEDNN, ZERO_POINT, native_int8, native_kernel
from udever.model.linear import native_bf16
from udever.model.precision import Precision, make_linear

ROWS, INPUTS, OUTPUTS = 2048, 1024, 4096
FLOPS = 2 * ROWS * INPUTS * OUTPUTS
GPU_SIDE = 8192
REPEATS = 5
PACKAGES = (
    "udever", "torch", "transformers", "sentence-transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime",
    "openvino",
)  # fmt: skip
INTERESTING_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine and the software, as told beside every number."""

    processor: str
    cores: int
    threads: int
    memory_gib: int
    flags: list[str]
    """Which of `INTERESTING_FLAGS` the processor has."""
    torch_capability: str
    native: dict[str, bool]
    """Whether oneDNN multiplies this precision in hardware here."""
    gpu: str | None
    python: str
    versions: dict[str, str] = field(default_factory=dict)


def describe(*, threads: int) -> Machine:
    """This machine."""
    cpuinfo = _cpuinfo()
    flags = cpuinfo.get("flags", "").split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        processor=f"{cpuinfo.get('model name', platform.processor())} (family {cpuinfo.get('cpu family', '?')}, "
        f"model {cpuinfo.get('model', '?')})",
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_gib=round(pages / 2**30),
        flags=[flag for flag in INTERESTING_FLAGS if flag in flags],
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        native={"bf16": native_bf16(), "int8": native_int8()},
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := _version(name))},
    )


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text("utf-8").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def as_json(machine: Machine) -> dict[str, object]:
    """For the results file."""
    return asdict(machine)


def ceiling_probes(device: torch.device) -> dict[Precision, Callable[[], float]]:
    """For each precision the hardware has, a function that measures its ceiling in GFLOP/s, in about half a second."""
    if device.type == "cuda":
        return {"fp32": lambda: _gpu_product(torch.float32), "bf16": lambda: _gpu_product(torch.bfloat16)}
    probes: dict[Precision, Callable[[], float]] = {"fp32": lambda: _best(_fp32_products())}
    if native_bf16():
        probes["bf16"] = lambda: _best([_layer("bf16")])
    if native_int8():
        probes["int8"] = lambda: _best([_int8_product()])
    return probes


def _fp32_products() -> list[Callable[[], object]]:
    x, weight = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS)
    plain: list[Callable[[], object]] = [lambda: F.linear(x, weight)]
    return [*plain, _layer("fp32")]


def _layer(precision: Precision) -> Callable[[], object]:
    layer = make_linear(torch.randn(OUTPUTS, INPUTS).half(), torch.zeros(OUTPUTS), precision=precision)
    layer.prepack()
    x = torch.randn(ROWS, INPUTS).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    return lambda: layer(x)


def _int8_product() -> Callable[[], object]:
    """The product alone: oneDNN's on an input that is quantised already, FBGEMM's, which rounds its input itself."""
    if native_kernel() is FBGEMM:
        loud, packed = torch.rand(ROWS, INPUTS), FBGEMM.pack(torch.ones(OUTPUTS, INPUTS).char(), torch.ones(OUTPUTS))
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return lambda: multiply(loud, 1 / INT8_MAX, ZERO_POINT, packed)
    x = torch.randint(0, 256, (ROWS, INPUTS), dtype=torch.uint8)
    weight, scales, zeros = ONEDNN.pack(torch.ones(OUTPUTS, INPUTS, dtype=torch.int8), torch.ones(OUTPUTS))
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
    )


def _best(products: list[Callable[[], object]]) -> float:
    with torch.inference_mode():
        return max(_gflops(product) for product in products)


def _gflops(product: Callable[[], object]) -> float:
    product()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return FLOPS / statistics.median(seconds) / 1e9


def _gpu_product(dtype: torch.dtype) -> float:
    a = torch.randn(GPU_SIDE, GPU_SIDE, device="cuda", dtype=dtype)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * GPU_SIDE**3 / (time.perf_counter() - start) / 1e9
