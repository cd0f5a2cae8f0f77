"""The providers of onnxruntime's beside its CPU one: OpenVINO, CUDA, TensorRT.

A newcomer's trap: OpenVINO takes bf16 by itself on a CPU that has it, so the precision is always set here, and told.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from .cuda_driver import first_gpu
from .onnx_runtime import Provider, open_with_provider, session_feed
from .protocol import RunnerFacts
from .written_out import attention_written_out

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..feeding import Batch
    from .protocol import Runner, RunnerOptions

__all__ = ["open_cuda", "open_openvino", "open_openvino_bf16", "open_tensorrt_ep"]

_OPENVINO = "OpenVINOExecutionProvider"
_PACKAGE = "onnxruntime-ep-openvino"


def open_openvino(model_path: Path, options: RunnerOptions) -> Runner:
    """Load a graph into OpenVINO on the CPU, through its provider for onnxruntime, computing in fp32.

    Raises:
        BenchError: a package is missing, OpenVINO can't load the graph, or takes no node of it.
    """
    return open_with_provider(model_path, options, partial(_openvino, options=options, bf16=False))


def open_openvino_bf16(model_path: Path, options: RunnerOptions) -> Runner:
    """Load a graph into OpenVINO on the CPU, through its provider for onnxruntime, computing in bf16.

    Raises:
        BenchError: as in ``open_openvino``, or the CPU has no bf16.
    """
    return open_with_provider(model_path, options, partial(_openvino, options=options, bf16=True))


def open_cuda(model_path: Path, options: RunnerOptions) -> Runner:
    """Load a graph into onnxruntime's CUDA provider.

    Raises:
        BenchError: no GPU, no onnxruntime for one, or it can't load the graph.
    """
    return open_with_provider(model_path, options, partial(_on_gpu, options=options, key="cuda"))


def open_tensorrt_ep(model_path: Path, options: RunnerOptions) -> Runner:
    """Load a graph into onnxruntime's TensorRT provider, which builds an engine for each new shape of batch.

    Raises:
        BenchError: no GPU, no onnxruntime with TensorRT, or it can't load the graph.
    """
    return open_with_provider(model_path, options, partial(_on_gpu, options=options, key="tensorrt-ep"))


def _openvino(onnxruntime: Any, options: RunnerOptions, bf16: bool) -> Provider:
    key = "openvino-bf16" if bf16 else "openvino"
    device, version = _openvino_cpu(onnxruntime, key)
    if bf16 and "BF16" not in device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", "").split():
        # It would run: emulated, the demo took 33 ms instead of 1.4 on an Ice Lake.
        raise BenchError(
            "open_openvino_bf16: this CPU has no bf16 (AMX or AVX512-BF16), and emulating it is slower than fp32; "
            "run with --provider openvino"
        )
    config: dict[str, str] = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", "PERFORMANCE_HINT": "LATENCY"}
    if options.threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(options.threads)
    version = f"{onnxruntime.__version__}, {_PACKAGE} {version}"
    facts = RunnerFacts("onnxruntime", key, "bf16" if bf16 else "fp32", version=version, options={**config})
    settings = {"load_config": json.dumps({"CPU": config})}  # the options of the older provider are ignored with a warning

    def attach(to: Any) -> None:
        to.add_provider_for_devices([device], settings)

    return Provider(_OPENVINO, facts, attach=attach, rewrite=attention_written_out, fixes_batch=True)


def _openvino_cpu(onnxruntime: Any, key: str) -> tuple[Any, str]:
    """Return OpenVINO's CPU as onnxruntime knows it, registering the provider the first time, and its version."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BenchError(
            f"open_openvino: onnxruntime {onnxruntime.__version__} takes no providers as packages; 1.23 and later do"
        )
    try:
        import onnxruntime_ep_openvino
    except ImportError as err:
        raise BenchError(
            f"open_openvino: the provider {key} needs OpenVINO. Run: pip install {_PACKAGE} (x86-64 only)"
        ) from err
    if not any(device.ep_name == _OPENVINO for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(_OPENVINO, onnxruntime_ep_openvino.get_library_path())
    for device in onnxruntime.get_ep_devices():
        if device.ep_name == _OPENVINO and device.ep_metadata.get("ov_device") == "CPU":
            return device, device.ep_metadata.get("version", "unknown").partition("+")[0]
    raise BenchError("open_openvino: OpenVINO finds no CPU that it runs on here; run with --provider cpu")


# key -> onnxruntime's name, what to install, options
_GPU_PROVIDERS: dict[str, tuple[str, str, dict[str, str]]] = {
    # TF32 is less than the graph's fp32, and torch leaves it off as well
    "cuda": ("CUDAExecutionProvider", "pip install onnxruntime-gpu", {"use_tf32": "0"}),
    "tensorrt-ep": ("TensorrtExecutionProvider", "pip install onnxruntime-gpu tensorrt", {}),
}


def _on_gpu(onnxruntime: Any, options: RunnerOptions, key: str) -> Provider:
    name, install, settings = _GPU_PROVIDERS[key]
    if name not in onnxruntime.get_available_providers():
        raise BenchError(
            f"open_onnxruntime: onnxruntime {onnxruntime.__version__} has no {name} here. Run: {install} "
            "(on a Jetson: NVIDIA's wheel for your JetPack)"
        )
    gpu = first_gpu()
    if gpu is None:
        raise BenchError(f"open_onnxruntime: {name} needs an NVIDIA GPU, and there is none here; run with --provider cpu")
    # onnxruntime replays a captured graph without copying an output to the CPU, so captures are left to the engine runners
    facts = RunnerFacts(
        "onnxruntime",
        key,
        "as the graph",
        device=gpu.name,
        copies=options.copies,
        cuda_graph=False,
        options={**settings},
    )
    return Provider(
        name, facts, asked=[(name, settings), "CPUExecutionProvider"], bind=partial(_BoundOnGpu, onnxruntime, options)
    )


class _BoundOnGpu:
    """A batch in the GPU's memory, copied there and back within a run if copies count.

    onnxruntime copies a bound input once, when it is bound, and an output that is bound to the CPU after each run.
    """

    device_ms = None

    def __init__(self, onnxruntime: Any, options: RunnerOptions, session: Any, batch: Batch) -> None:
        import numpy as np

        self._run, self._binding, self._session = session.run_with_iobinding, session.io_binding(), session
        self._fills: list[tuple[Any, np.ndarray[Any, Any]]] = []
        for name, given in session_feed(session, batch).items():
            array = np.ascontiguousarray(given)
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            self._binding.bind_ortvalue_input(name, value)
            self._fills.append((value, array))  # what is bound must stay alive
        self._names = [one.name for one in session.get_outputs()]
        for name in self._names:
            self._binding.bind_output(name, "cpu" if options.copies else "cuda")
        self._copies = options.copies
        self._run(self._binding)

    def __call__(self) -> None:
        if self._copies:
            for value, array in self._fills:
                value.update_inplace(array)
        self._run(self._binding)
        self._binding.synchronize_outputs()

    def output(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._binding.get_outputs()[0].numpy()
        return found

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: value.numpy() for name, value in zip(self._names, self._binding.get_outputs(), strict=True)}
