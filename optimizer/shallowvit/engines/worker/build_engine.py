"""Build one engine from one ONNX graph, as a job file says: ``python build_engine.py JOB.json``.

Runs in a process of its own, because TensorRT may abort, crash or print to file descriptor 2. Everything it logs goes into the
job's log file as it comes, so that a crash leaves its last words; the outcome goes into the job's result file. On a Jetson,
where this file comes in a bundle, it also checks the recipe's attentions and says how many are fused.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from typing import Any

if __package__:
    from . import layers as layer_texts
else:  # run as a script, whose own folder is the first on sys.path
    import layers as layer_texts  # type: ignore[import-not-found, no-redef]

Job = dict[str, Any]


class Refused(Exception):
    """The build can't be: a stage and a sentence."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


def build(job: Job) -> dict[str, Any]:
    """Build the engine and return what there is to know about it.

    Raises:
        Refused: TensorRT isn't there, or refuses the graph, the options or the build.
    """
    flavour = importlib.import_module("flavour_" + job["flavour"])
    trt = _tensorrt(flavour)
    log = _Log(job["log"])
    logger = _logger(trt, log)
    started = time.perf_counter()
    registered = _register(trt, flavour, job)
    builder = trt.Builder(logger)
    network = _network(trt, builder, logger, job, registered)
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    try:
        _configure(trt, config, job)
        flavour.configure(trt, config, job)
    except (ValueError, AttributeError) as err:
        raise Refused("options", str(err)) from err
    _add_profiles(builder, config, network, job)
    cached = _load_cache(flavour, trt, config, job)
    plan = builder.build_serialized_network(network, config)
    if log.failed:
        raise log.failed
    _check_plugins(registered)
    if plan is None:
        raise Refused("build", log.first_error() or "the builder returned nothing and said nothing")
    content = bytes(plan)
    _write(job["engine"], content)
    _save_cache(flavour, trt, config, job)
    listed = layer_texts.layers_from_log(log.layers)
    inspected, skipped = _inspect(trt, logger, content)
    return {
        "ok": True,
        "version": trt.__version__,
        "parse_s": parsed - started,
        "build_s": time.perf_counter() - parsed,
        "bytes": len(content),
        "layers": listed,
        "inspected": inspected,
        "not_inspected": skipped,
        "activation_bytes": layer_texts.memory_from_log(log.memory, "Activation"),
        "weights_bytes": layer_texts.memory_from_log(log.memory, "Weights"),
        "timing_cache_used": cached,
        "gpu": gpu(),
    }


def _tensorrt(flavour: Any) -> Any:
    try:
        return importlib.import_module(flavour.MODULE)
    except ImportError as err:
        raise Refused(
            "import", f"{flavour.TITLE} (module {flavour.MODULE}) can't be imported by {sys.executable}: {err}"
        ) from err


def _register(trt: Any, flavour: Any, job: Job) -> Any:
    """Make the job's own kernels known; None where it has none."""
    nodes = _plugin_nodes(job)
    if nodes is None:
        return None
    found = gpu()
    try:
        return nodes.register_plugins(trt, flavour, job, found["sm"] if found else None)
    except nodes.PluginRefused as err:
        raise Refused("plugin", str(err)) from err


def _plugin_nodes(job: Job) -> Any:
    """The module that a job without kernels of our own, and its folder, does without."""
    return importlib.import_module("plugin_nodes") if job.get("plugins") else None


def _check_plugins(registered: Any) -> None:
    if registered is not None and registered.problem():
        raise Refused("plugin", registered.problem())


def _network(trt: Any, builder: Any, logger: Any, job: Job, registered: Any) -> Any:
    wanted = ["STRONGLY_TYPED"]  # 11.x has nothing else and may drop the name
    if registered is not None and registered.ahead:
        wanted.append("PREFER_AOT_PYTHON_PLUGINS")
    flags = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in wanted]
    network = builder.create_network(sum(1 << int(flag) for flag in flags if flag is not None))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(job["onnx"])
    _check_plugins(registered)  # also where the parser took the node's function instead
    if not parsed:
        raise Refused("parse", _parse_error(parser))
    if not network.num_layers or not network.num_outputs:
        raise Refused("parse", "the parser took the file for an empty network: no layers or no outputs")
    network.name = job["name"]  # without a name two builds differ in one byte
    if job.get("decomposable"):
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == trt.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = trt.IAttentionOutputLayer  # get_layer returns the base class
                layer.attention.decomposable = True
    return network


def _parse_error(parser: Any) -> str:
    error = parser.get_error(0)
    node = error.node_name() or f"node {error.node()}"
    operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    code = str(error.code()).rpartition(".")[2].lower().replace("_", " ")
    said = "" if error.desc() in ("", "false") else f": {error.desc()}"  # the condition that failed, without its words
    return f"{node}{operator}: {code}{said}"


def _configure(trt: Any, config: Any, job: Job) -> None:
    if job.get("workspace_bytes") is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    if job.get("level") is not None:
        config.builder_optimization_level = job["level"]


def _add_profiles(builder: Any, config: Any, network: Any, job: Job) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if not any(-1 in tuple(tensor.shape) for tensor in inputs):
        return
    for number, shapes in enumerate(job["profiles"]):
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in shapes.items():
            profile.set_shape(name, tuple(low), tuple(best), tuple(high))
        if config.add_optimization_profile(profile) < 0:
            raise Refused("options", f"TensorRT refuses optimisation profile {number} ({json.dumps(shapes)})")


def _cache_path(flavour: Any, trt: Any, job: Job) -> str | None:
    """The timing cache of this TensorRT and this GPU; TensorRT itself refuses one that doesn't fit."""
    if not job.get("timing_cache_folder"):
        return None
    found = gpu()
    name = "{}-{}-{}.cache".format(flavour.MODULE, trt.__version__, found["name"].replace(" ", "-") if found else "no-gpu")
    return os.path.join(job["timing_cache_folder"], name.replace("/", "-"))


def _load_cache(flavour: Any, trt: Any, config: Any, job: Job) -> bool:
    path = _cache_path(flavour, trt, job)
    if path is None:
        return False
    content = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            content = file.read()
    return bool(flavour.load_timing_cache(trt, config, content))


def _save_cache(flavour: Any, trt: Any, config: Any, job: Job) -> None:
    path = _cache_path(flavour, trt, job)
    timed = flavour.saved_timing_cache(config) if path else b""
    if path and timed:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write_over(path, timed)
        except OSError:  # a cache that can't be kept costs the next build time, and this one nothing
            pass


def _inspect(trt: Any, logger: Any, content: bytes) -> Any:
    """Load the engine and list its layers; without a GPU return None and why not."""
    if gpu() is None:
        return None, "no NVIDIA GPU here"
    engine = trt.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        return None, "the GPU here can't load the engine"
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layer_texts.layers_from_inspector(text), None


def gpu() -> dict[str, Any] | None:
    """Return the name and compute capability (86 for 8.6) of the first GPU as the driver tells them, or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return {"name": name.value.decode(errors="replace"), "sm": major.value * 10 + minor.value}


class _Log:
    """The log file, and what of it is needed at once: errors, layers, memory."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - open as long as the builder
        self.errors: list[str] = []
        self.layers = ""
        self.memory = ""
        self.failed: OSError | None = None

    def add(self, severity: str, message: str) -> None:
        try:
            self._file.write(f"[{severity}] {message}\n")
            if severity.endswith("ERROR"):
                self._file.flush()
        except OSError as err:  # a full disk; an exception must not travel through the library that calls this
            self.failed = err
        if severity.endswith("ERROR"):
            self.errors.append(message)
        elif message.startswith("Layers:"):
            self.layers += message + "\n"
        elif message.startswith("Total ") and "Memory:" in message:
            self.memory += message + "\n"

    def first_error(self) -> str | None:
        """The first error that isn't a consequence: a missing driver is reported after most real ones."""
        real = [text for text in self.errors if "cudaError" not in text and "CUDA initialization" not in text]
        return next(iter(real or self.errors), None)


def _logger(trt: Any, log: _Log) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(str(severity).rpartition(".")[2], message)

    return Logger()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_over(path: str, content: bytes) -> None:
    beside = f"{path}.{os.getpid()}.partial"
    _write(beside, content)
    os.replace(beside, path)


def outcome(job: Job) -> dict[str, Any]:
    """Build, and turn what can go wrong into a result."""
    try:
        return build(job)
    except Refused as err:
        return {"ok": False, "stage": err.stage, "message": str(err)}
    except OSError as err:
        return {"ok": False, "stage": "write", "errno": err.errno, "message": str(err)}


def unfused(result: dict[str, Any], attentions: list[dict[str, Any]], profiles: int) -> list[str]:
    """Return the paths of the recipe's attentions that aren't fused in every profile of a built engine."""
    fused = layer_texts.kernels_of_nodes(result["inspected"] or result["layers"], attentions)
    return [site["path"] for site in attentions if len(fused[site["anchor"]]) < profiles]


def read_job(path: str) -> Job:
    """Return a job file's contents; paths in it are taken from where it stands."""
    path = os.path.abspath(path)
    with open(path, encoding="utf-8") as file:
        job: Job = json.load(file)
    job["folder"] = os.path.dirname(path)
    for key in ("onnx", "engine", "log", "result", "timing_cache_folder", "plugin_code"):
        if job.get(key):
            job[key] = os.path.join(job["folder"], job[key])
    return job


def main() -> int:
    """Run a job file."""
    job = read_job(sys.argv[1])
    result = outcome(job)
    nodes = _plugin_nodes(job)
    if nodes is not None:
        nodes.take_library_back(job)
    _write_over(job["result"], json.dumps(result).encode())
    if "attentions" not in job:
        return 0 if result["ok"] else 1
    return _say(job, result)


def _say(job: Job, result: dict[str, Any]) -> int:
    """Tell a person on the device how it went; a recipe's attentions must all be fused."""
    if not result["ok"]:
        sys.stderr.write("build_engine: {}: {}\n".format(result["stage"], result["message"]))
        return 1
    missing = unfused(result, job["attentions"], max(1, len(job["profiles"])))
    total = len(job["attentions"])
    sys.stdout.write("{}: attention fused {} of {}\n".format(job["engine"], total - len(missing), total))
    if missing and not job.get("allow_unfused"):
        os.remove(job["engine"])
        sys.stderr.write("build_engine: not fused: {}; the engine was removed\n".format(", ".join(missing)))
        return 1
    return 0


def fix_addresses() -> None:
    """Start again without address space randomisation, where the system lets us.

    TensorRT's compiler numbers tensors in the order of their addresses: five builds of a Swin-T in int8 gave four different
    files, and eight without randomisation one. Containers may forbid it; then the build goes on as it is.
    """
    no_randomisation = 0x0040000  # ADDR_NO_RANDOMIZE of linux/personality.h
    if not sys.platform.startswith("linux"):
        return
    personality = ctypes.CDLL(None).personality
    current = personality(0xFFFFFFFF)
    if current == -1 or current & no_randomisation or personality(current | no_randomisation) == -1:
        return
    os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    wanted = read_job(sys.argv[1])
    if wanted.get("plugins"):
        _plugin_nodes(wanted).give_library_its_name(wanted)
    fix_addresses()
    sys.exit(main())
