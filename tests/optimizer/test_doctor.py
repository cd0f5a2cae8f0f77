import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shallowvit import ShallowvitError
from shallowvit.cli.main import COMMANDS, main
from shallowvit.engines.abilities import answer_for_target
from shallowvit.engines.board import board_findings
from shallowvit.engines.doctor import Status, _load, _loaded, diagnose
from shallowvit.engines.findings import missing, ok
from shallowvit.engines.targets import Kind, all_targets, find_target
from shallowvit_bench.boards import detect_jetson, read_board
from shallowvit_bench.probes import (
    GpuInfo,
    Output,
    parse_gpus,
    parse_jetson_clocks,
    parse_l4t_package,
    parse_nv_tegra_release,
    parse_power_mode,
    parse_power_modes,
    run_command,
)

from .boards import (
    BOARDS,
    CLOCKS_AGX_ORIN_39,
    CLOCKS_ORIN_NANO_LOCKED,
    CLOCKS_ORIN_NX_FREE,
    CLOCKS_TX2,
    MODES_CONF,
    MODES_VERBOSE,
    NOT_ROOT,
    ORIN_NANO,
    ORIN_NANO_KB,
    POWER_MODES,
    R36,
    RELEASES,
    board_root,
    write_root,
)

THOR_COMPATIBLE = "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0"
NOISE = "aZ09 .,:=_/-#<>()[]%\t\0\né²\U0001f600"
# written after the format of nvidia-smi, not captured
H100 = "NVIDIA H100 80GB HBM3, 580.65.06, 81559, 9.0, 700.00\n"
ORIN_SMI = "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A]\n"
TEXTS = [*RELEASES, *POWER_MODES, CLOCKS_ORIN_NANO_LOCKED, CLOCKS_ORIN_NX_FREE, CLOCKS_TX2, CLOCKS_AGX_ORIN_39, NOT_ROOT]
TEXTS += [MODES_CONF, MODES_VERBOSE, H100, ORIN_SMI, "36.4.4-20250616085344", "6.2.1+b38"]


@pytest.fixture
def orin(tmp_path):
    """The root of an Orin Nano under JetPack 6.2.1 in its Super configuration."""
    files = {"etc/nv_tegra_release": R36 + "\n", "etc/nvpmodel.conf": MODES_CONF}
    return board_root(tmp_path, ORIN_NANO, ORIN_NANO_KB, **files)


def _answers(**outputs):
    """A runner that knows the commands given by the first word; real ones run nowhere but on a board."""

    def run(words):
        found = outputs.get(words[0].replace("-", "_"))
        return found(words) if callable(found) else found

    return run


def _said(text, code=0, err=""):
    return Output(code, text, err)


ORIN_COMMANDS = {
    "dpkg_query": lambda words: _said("6.2.1+b38" if words[-1] == "nvidia-jetpack" else "36.4.4-20250616085344"),
    "nvpmodel": _said("NV Power Mode: MAXN_SUPER\n2\n"),
    "jetson_clocks": _said(CLOCKS_ORIN_NANO_LOCKED),
}


@st.composite
def _damaged(draw):
    """A capture that was cut, repeated, or had pieces replaced by noise."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        until = draw(st.integers(at, min(len(text), at + 20)))
        text = (
            text[:at]
            + draw(st.text(NOISE, max_size=6) | st.sampled_from(["\0", "\n", "=", "999999999999999999999"]))
            + text[until:]
        )
    return text


# --- parsers, on captures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "expected"), RELEASES.items(), ids=[found[0] for found in RELEASES.values()])
def test_parse_nv_tegra_release_of_each_generation_gives_its_l4t(line, expected):
    assert parse_nv_tegra_release(line + "\n# KERNEL_VARIANT: oot\n") == expected[0]


def test_parse_l4t_package_drops_the_build_date():
    assert parse_l4t_package("36.4.4-20250616085344") == "36.4.4"
    assert parse_l4t_package("dpkg-query: no packages found matching nvidia-l4t-core") is None


@pytest.mark.parametrize(("text", "expected"), POWER_MODES.items(), ids=[str(found[0]) for found in POWER_MODES.values()])
def test_parse_power_mode_of_each_capture_gives_name_and_number(text, expected):
    assert parse_power_mode(text) == expected


def test_parse_power_mode_without_one_is_none():
    assert parse_power_mode("NVPM ERROR: permission denied") is None


def test_parse_power_modes_reads_both_sources():
    assert parse_power_modes(MODES_CONF) == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
    assert parse_power_modes(MODES_VERBOSE) == {3: "MODE_50W"}


def test_parse_jetson_clocks_locked_orin_nano():
    clocks = parse_jetson_clocks(CLOCKS_ORIN_NANO_LOCKED)
    assert clocks.locked is True
    assert clocks.machine == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (clocks.gpu_max_hz, clocks.emc_current_hz, clocks.gpu_tpcs) == (1_020_000_000, 3_199_000_000, 8)
    assert clocks.governors == ("schedutil",)


def test_parse_jetson_clocks_free_orin_nx():
    clocks = parse_jetson_clocks(CLOCKS_ORIN_NX_FREE)
    assert (clocks.locked, clocks.gpu_min_hz, clocks.emc_override) == (False, 306_000_000, False)


def test_parse_jetson_clocks_of_jetpack_7_has_no_online_field():
    clocks = parse_jetson_clocks(CLOCKS_AGX_ORIN_39)
    assert (clocks.locked, clocks.governors) == (True, ("schedutil",))


def test_parse_jetson_clocks_of_a_tx2_without_gpu_line_leaves_locked_unknown():
    clocks = parse_jetson_clocks(CLOCKS_TX2)
    assert (clocks.machine, clocks.locked, clocks.gpu_tpcs) == ("quill", None, None)


def test_parse_jetson_clocks_gpu_alone_fixed_is_not_locked():
    text = CLOCKS_ORIN_NANO_LOCKED.replace("FreqOverride=1", "FreqOverride=0").replace(
        "CurrentFreq=3199000000", "CurrentFreq=204000000"
    )
    assert parse_jetson_clocks(text).locked is False


def test_parse_jetson_clocks_refused_is_none():
    assert parse_jetson_clocks(NOT_ROOT) is None


def test_parse_gpus_reads_a_line():
    assert parse_gpus(H100) == (GpuInfo("NVIDIA H100 80GB HBM3", "580.65.06", 81559.0, 90, 700.0),)


def test_parse_gpus_not_available_stays_none():
    assert parse_gpus(ORIN_SMI) == (GpuInfo("Orin (nvgpu)", "540.4.0", None, None, None),)


def test_parse_gpus_of_an_error_is_empty():
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == ()


@settings(derandomize=True, deadline=None)
@given(text=_damaged())
def test_parsers_of_damaged_captures_never_crash(text):
    clocks = parse_jetson_clocks(text)
    assert clocks is None or clocks.locked in (True, False, None)
    assert all(gpu.name for gpu in parse_gpus(text))
    assert parse_power_mode(text) is None or parse_power_mode(text)[0]
    for parse in (parse_nv_tegra_release, parse_l4t_package):
        assert parse(text) is None or parse(text)[0].isdigit()
    assert all(number >= 0 for number in parse_power_modes(text))


# --- which board ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "memory_kb", "key"), BOARDS, ids=[f"{key}-{model}" for model, _, key in BOARDS])
def test_detect_jetson_by_name_and_memory(tmp_path, model, memory_kb, key):
    assert detect_jetson(board_root(tmp_path, model, memory_kb)) == key


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("TNSPEC 3834-400-0008-M.0-1-1-jetson-agx-thor-devkit-", "jetson-thor-t5000"),
        ("COMPATIBLE_SPEC 3834-0008--1--jetson-agx-thor-", "jetson-thor-t5000"),
        ("TNSPEC x-jetson-t4000-", "jetson-thor-t4000"),
    ],
)
def test_detect_jetson_of_a_thor_asks_the_boot_control_first(tmp_path, line, key):
    files = {"etc/nv_boot_control.conf": f"TEGRA_CHIPID 0x26\n{line}\n"}
    other_kb = 60 * 2**20 if key.endswith("t5000") else 125 * 2**20  # the memory says otherwise
    assert detect_jetson(board_root(tmp_path, "NVIDIA Jetson AGX Thor Developer Kit", other_kb, **files)) == key


def test_detect_jetson_with_a_rewritten_name_uses_the_part_number(tmp_path):
    files = {"proc/device-tree/compatible": THOR_COMPATIBLE}
    assert detect_jetson(board_root(tmp_path, "Somebody's Box", 125 * 2**20, **files)) == "jetson-thor-t5000"


def test_detect_jetson_without_memory_uses_the_part_number(tmp_path):
    files = {"proc/device-tree/model": "Jetson Orin NX", "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0001\0"}
    assert detect_jetson(write_root(tmp_path, files)) == "jetson-orin-nx-8gb"


@pytest.mark.parametrize("model", ["Raspberry Pi 5 Model B Rev 1.0", "", "NVIDIA Jetson AGX Orin Developer Kit"])
def test_detect_jetson_of_another_machine_is_none(tmp_path, model):
    assert detect_jetson(board_root(tmp_path, model, 8 * 2**20)) is None  # no AGX Orin shows 8 GiB


def test_detect_jetson_of_an_empty_root_is_none(tmp_path):
    assert detect_jetson(tmp_path) is None


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    model=st.text(NOISE, max_size=30) | st.sampled_from([model for model, _, _ in BOARDS]),
    meminfo=_damaged(),
    memory=st.integers(0),
)
def test_detect_jetson_of_noise_gives_a_known_key_or_none(tmp_path_factory, model, meminfo, memory):
    text = f"MemTotal: {memory} kB\n{meminfo}"
    files = {"proc/device-tree/model": model, "proc/meminfo": text, "etc/nv_boot_control.conf": text}
    found = detect_jetson(write_root(tmp_path_factory.mktemp("root"), files))
    assert found is None or find_target(found).key == found


# --- a board as a whole -----------------------------------------------------------------------------------------------------


def _by_name(findings):
    return {finding.name: finding for finding in findings}


def test_read_board_of_no_jetson_is_none(tmp_path):
    assert read_board(tmp_path, _answers()) is None


def test_board_findings_of_a_locked_orin_nano_are_all_ok(orin):
    found = _by_name(board_findings(read_board(orin, _answers(**ORIN_COMMANDS))))
    assert [finding.status for finding in found.values()] == [Status.OK] * 4
    assert found["board"].value == "jetson-orin-nano-8gb-super"
    assert found["JetPack"].value == "6.2.1 (L4T 36.4.4)"
    assert found["JetPack"].note == "TensorRT 10.3, Python 3.10"
    assert (found["power mode"].value, found["power mode"].note) == ("MAXN_SUPER (2)", "")
    assert found["clocks"].note == "GPU at 1020 MHz"


def test_board_findings_of_a_lower_mode_name_the_highest_by_its_name(orin):
    board = read_board(orin, _answers(**ORIN_COMMANDS | {"nvpmodel": _said("NV Power Mode: 15W\n0\n")}))
    assert _by_name(board_findings(board))["power mode"].note == "not the highest: sudo nvpmodel -m 2 sets MAXN_SUPER"


def test_board_findings_of_free_clocks_give_the_command(orin):
    board = read_board(orin, _answers(**ORIN_COMMANDS | {"jetson_clocks": _said(CLOCKS_ORIN_NX_FREE)}))
    clocks = _by_name(board_findings(board))["clocks"]
    assert (clocks.status, clocks.value, clocks.fix) == (Status.MISSING, "free", "sudo jetson_clocks")


def test_board_findings_without_root_leave_clocks_unknown(orin):
    board = read_board(orin, _answers(**ORIN_COMMANDS | {"jetson_clocks": _said(NOT_ROOT, code=1)}))
    clocks = _by_name(board_findings(board))["clocks"]
    assert (clocks.status, clocks.fix) == (Status.UNKNOWN, "sudo jetson_clocks --show")
    assert "as a root user" in clocks.note


def test_board_findings_without_the_metapackage_ask_for_it(orin):
    missing_package = _said("", code=1, err="dpkg-query: no packages found matching nvidia-jetpack")
    board = read_board(orin, _answers(**ORIN_COMMANDS | {"dpkg_query": missing_package}))
    found = _by_name(board_findings(board))["JetPack"]
    assert (found.status, found.value, found.fix) == (Status.MISSING, "6.2.1 (L4T 36.4.4)", "sudo apt install nvidia-jetpack")


def test_read_board_without_a_release_file_asks_the_package(orin):
    (orin / "etc/nv_tegra_release").unlink()
    board = read_board(orin, _answers(**ORIN_COMMANDS))
    assert (board.l4t, board.jetpack.version) == ("36.4.4", "6.2.1")


def test_read_board_without_nvpmodel_reads_its_status_file(orin):
    write_root(orin, {"var/lib/nvpmodel/status": "pmode:0001\n"})
    assert read_board(orin, _answers(**ORIN_COMMANDS | {"nvpmodel": None})).mode == ("25W", 1)


def test_board_findings_of_an_unknown_release_say_so(orin):
    write_root(orin, {"etc/nv_tegra_release": R36.replace("4.4", "9.9")})
    found = _by_name(board_findings(read_board(orin, _answers(**ORIN_COMMANDS))))["JetPack"]
    assert (found.status, found.value) == (Status.UNKNOWN, "L4T 36.9.9")
    assert "no JetPack with L4T 36.9.9" in found.note


def test_board_findings_with_nothing_to_ask_are_unknown(tmp_path):
    board = read_board(write_root(tmp_path, {"proc/device-tree/model": "A Jetson of tomorrow\0"}), _answers())
    found = board_findings(board)
    assert {finding.status for finding in found} == {Status.UNKNOWN}
    assert found[0].value == "A Jetson of tomorrow"


# --- the whole diagnosis ----------------------------------------------------------------------------------------------------


def test_diagnose_this_machine_is_quick_and_finds_what_is_installed():
    start = time.monotonic()
    found = _by_name(diagnose().findings)
    assert time.monotonic() - start < 3
    import onnx
    import onnxruntime

    assert (found["onnx"].status, found["onnx"].value) == (Status.OK, onnx.__version__)
    assert found["onnxruntime"].value == onnxruntime.__version__
    assert "CPUExecutionProvider" in found["onnxruntime"].note
    assert found["Python"].value == sys.version.split()[0]


def test_diagnose_loads_the_installed_tensorrt_in_a_process_of_its_own():
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX isn't installed")
    found = _by_name(diagnose().findings)["tensorrt_rtx"]
    assert (found.status, found.value) == (Status.OK, tensorrt_rtx.__version__)


def test_diagnose_imports_nothing_heavy():
    script = (
        "import sys\nfrom shallowvit.engines.doctor import diagnose\ndiagnose()\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'tensorrt_rtx', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_diagnose_every_missing_thing_has_a_command_or_a_reason(tmp_path):
    for finding in diagnose(root=tmp_path, run=_answers()).findings:
        assert finding.status is Status.OK or finding.fix or finding.note


def test_diagnose_a_board_tells_it_and_leaves_rtx_out(orin):
    found = diagnose("jetson-orin-nano-8gb", orin, _answers(**ORIN_COMMANDS, nvidia_smi=_said(ORIN_SMI)))
    names = _by_name(found.findings)
    assert found.jetson == "jetson-orin-nano-8gb-super"
    assert "tensorrt_rtx" not in names
    assert names["GPU"].value == "compute capability 8.7, of the board"
    assert names["NVIDIA driver"].value == "540.4.0"


def test_diagnose_a_board_whose_tensorrt_is_the_systems_says_how_to_see_it(orin):
    (orin / "usr/lib/python3.10/dist-packages/tensorrt").mkdir(parents=True)
    found = _by_name(diagnose(root=orin, run=_answers(**ORIN_COMMANDS)).findings)["tensorrt"]
    assert (found.status, found.fix) == (Status.MISSING, "python3 -m venv --system-site-packages .venv")


def test_diagnose_a_gpu_names_its_capability_and_driver(tmp_path):
    found = _by_name(diagnose(root=tmp_path, run=_answers(nvidia_smi=_said(H100))).findings)
    assert found["GPU"].value == "NVIDIA H100 80GB HBM3 (compute capability 9.0)"
    assert found["GPU"].note == "79.6 GiB, power limit 700 W"
    assert found["NVIDIA driver"].value == "580.65.06"


def test_diagnose_a_gpu_without_a_driver_gives_the_command(tmp_path):
    root = write_root(tmp_path, {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n"})
    broken = _said("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    found = _by_name(diagnose(root=root, run=_answers(nvidia_smi=broken)).findings)
    assert found["GPU"].status is Status.UNKNOWN
    assert (found["NVIDIA driver"].status, found["NVIDIA driver"].fix) == (Status.MISSING, "sudo ubuntu-drivers install")
    assert "NVIDIA-SMI has failed" in found["NVIDIA driver"].note


def test_diagnose_reads_the_driver_without_nvidia_smi(tmp_path):
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:12:40 UTC 2025\n"
    found = _by_name(diagnose(root=write_root(tmp_path, {"proc/driver/nvidia/version": text}), run=_answers()).findings)
    assert found["NVIDIA driver"].value == "580.65.06"


def test_diagnose_governor_and_memory_come_from_the_root(tmp_path):
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n",
    }
    found = _by_name(diagnose(root=write_root(tmp_path, files), run=_answers()).findings)
    assert (found["CPU governor"].value, found["CPU governor"].fix) == (
        "powersave",
        "sudo cpupower frequency-set -g performance",
    )
    assert (found["memory"].status, found["memory"].value) == (Status.MISSING, "1.0 of 4.0 GiB free")


def test_diagnose_unknown_target_raises():
    with pytest.raises(ShallowvitError, match=r"no target 'h900' among"):
        diagnose("h900", run=_answers())


# --- loading a module -------------------------------------------------------------------------------------------------------


def _finding(output):
    return _loaded("tensorrt", output, "builds engines", "pip install tensorrt")


def test_loaded_module_that_isnt_installed_is_missing():
    assert _load("tensorrt_of_nobody", run_command) is None
    assert _finding(None) == missing("tensorrt", "builds engines; not installed", "pip install tensorrt")


def test_loaded_module_that_aborts_names_the_signal():
    crash = "import os, sys; sys.stderr.write('libnvinfer not found\\n'); sys.stderr.flush(); os.abort()"
    found = _finding(run_command((sys.executable, "-c", crash)))
    assert found.note == "installed, but loading it ends with signal 6: libnvinfer not found"
    assert found.fix == "pip install tensorrt --force-reinstall"


def test_loaded_module_that_raises_gives_its_last_line():
    found = _finding(run_command((sys.executable, "-c", "raise ImportError('libcudart.so.13')")))
    assert found.note == "installed, but loading it ends with exit code 1: ImportError: libcudart.so.13"


def test_loaded_module_that_hangs_is_unknown():
    found = _finding(run_command((sys.executable, "-c", "import time; time.sleep(60)"), timeout_s=0.3))
    assert (found.status, found.note) == (Status.UNKNOWN, "installed, but loading did not end within 0.3 s")


@pytest.mark.parametrize("printed", ["nothing like it", "7", "[1]"])
def test_loaded_module_that_prints_something_else_is_unknown(printed):
    assert _finding(_said(printed)).status is Status.UNKNOWN


def test_run_command_of_no_command_is_none():
    assert run_command(("no-such-command-here",)) is None


# --- the answer for a target ------------------------------------------------------------------------------------------------

HAVE = [
    ok("torch", "2.14"),
    ok("onnx", "1.23"),
    ok("onnxruntime", "1.32"),
    ok("tensorrt_rtx", "1.7.1"),
    ok("CUDA from Python", "x"),
]
NO_TENSORRT = missing("tensorrt", "not installed", "pip install tensorrt")
GPU_H100 = parse_gpus(H100)


def _answer(key, findings, gpus=(), board=None):
    return answer_for_target(find_target(key), findings, gpus, board)


def _without(name):
    kept = [finding for finding in HAVE if finding.name != name]
    return [*kept, missing(name, "not installed", f"pip install {name}"), NO_TENSORRT]


def test_answer_for_an_rtx_target_builds_ahead_of_time_without_a_gpu():
    found = _answer("rtx-4090", [*HAVE, NO_TENSORRT])
    assert (found.possible, found.prepare.possible, found.build.possible, found.run.possible) == (True, True, True, False)
    assert found.build.reason == "with TensorRT-RTX 1.7.1, ahead of time"


def test_answer_for_h100_without_one_says_that_portable_was_not_tried():
    assert "which was not tried on H100 SXM" in _answer("h100-sxm", [*HAVE, NO_TENSORRT]).build.reason


def test_answer_for_h100_on_one_uses_tensorrt():
    found = _answer("h100-sxm", [*HAVE, ok("tensorrt", "11.4.0")], GPU_H100)
    assert found.build.reason == "with TensorRT 11.4.0 on this machine's own GPU"
    assert found.run.possible


def test_answer_for_h100_on_another_gpu_can_not_run():
    found = _answer("h100-sxm", [*HAVE, ok("tensorrt", "11.4.0")], [replace(GPU_H100[0], sm=80)])
    assert (found.run.possible, found.run.reason) == (False, "no such GPU is here: bench the bundle on the target")


def test_answer_for_a_jetson_elsewhere_can_only_prepare():
    found = _answer("jetson-orin-nx-16gb", [*HAVE, ok("tensorrt", "11.4.0")], GPU_H100)
    assert (found.prepare.possible, found.build.possible, found.run.possible) == (True, False, False)
    assert "built on the Jetson: copy the bundle there and run shallowvit build" in found.build.reason


def test_answer_for_a_jetson_on_the_board_names_the_opset(orin):
    board = read_board(orin, _answers(**ORIN_COMMANDS))
    found = _answer("jetson-orin-nano-8gb", [*HAVE, ok("tensorrt", "10.3.0")], board=board)
    assert found.build.reason == "this is the board, with TensorRT 10.3.0, for graphs of opset 18"
    assert (found.build.possible, found.run.possible) == (True, True)
    assert not _answer("jetson-orin-nx-16gb", [*HAVE, ok("tensorrt", "10.3.0")], board=board).build.possible


def test_answer_for_a_jetson_without_tensorrt_gives_the_command(orin):
    board = read_board(orin, _answers(**ORIN_COMMANDS))
    found = _answer("jetson-orin-nano-8gb", [*HAVE, NO_TENSORRT], board=board)
    assert (found.build.possible, found.build.fix) == (False, "pip install tensorrt")
    assert (found.run.possible, found.run.fix) == (False, "pip install tensorrt")


def test_answer_for_a_board_with_an_old_tensorrt_can_not_build(orin):
    board = read_board(orin, _answers(**ORIN_COMMANDS))
    found = _answer("jetson-orin-nano-8gb", [*HAVE, ok("tensorrt", "8.6.2")], board=board)
    assert (found.build.possible, found.build.reason.split(";")[0]) == (
        False,
        "TensorRT 8.6.2 takes precision from builder flags",
    )


def test_answer_for_a_jetson_nano_can_build_nowhere():
    assert _answer("jetson-nano-4gb", [*HAVE, NO_TENSORRT]).build.reason.startswith("no JetPack of it has a TensorRT that can")


def test_answer_without_torch_can_not_prepare():
    found = _answer("rtx-4090", _without("torch"))
    assert (found.prepare.possible, found.prepare.reason, found.prepare.fix) == (
        False,
        "exporting needs torch",
        "pip install torch",
    )
    assert found.possible  # it can still build


def test_answer_without_rtx_gives_the_command():
    found = _answer("rtx-4090", _without("tensorrt_rtx"))
    assert (found.build.possible, found.build.fix) == (False, "pip install tensorrt_rtx")


def test_answer_without_cuda_from_python_can_not_run():
    findings = [*_without("CUDA from Python")[:-1], ok("tensorrt", "11.4.0")]
    assert _answer("h100-sxm", findings, GPU_H100).run.fix == "pip install CUDA from Python"


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.key)
def test_answer_for_every_target_has_reasons(target):
    found = answer_for_target(target, [*HAVE, NO_TENSORRT], (), None)
    assert found.prepare.reason
    assert found.build.reason
    assert found.run.reason
    assert found.build.possible is (target.kind is not Kind.JETSON)  # with RTX; there is no GPU


# --- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``shallowvit doctor`` in this process; returns the exit code, stdout and stderr."""
    assert "doctor" in COMMANDS

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", "doctor", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run_main


def test_doctor_command_prints_each_finding_and_exits_with_0(run):
    code, out, _ = run()
    assert code == 0
    assert all(f" {name} " in out for name in ("Python", "torch", "tensorrt", "disk"))


def test_doctor_command_json_holds_the_answer(run):
    code, out, _ = run("--target", "rtx-4090", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["answer"]["target"] == "rtx-4090"
    assert {"name", "status", "value", "note", "fix"} == set(record["findings"][0])


def test_doctor_command_for_a_jetson_says_what_to_do(run):
    code, out, _ = run("--target", "jetson-orin-nx-16gb")
    assert code == 0
    assert "cannot build: engines for a Jetson are built on the Jetson" in out


def test_doctor_command_impossible_target_exits_with_1(run, monkeypatch):
    real = answer_for_target

    def without_anything(target, findings, gpus, board):
        return real(target, [missing(finding.name, "gone", "get it") for finding in findings], gpus, board)

    monkeypatch.setattr("shallowvit.engines.doctor.answer_for_target", without_anything)
    code, out, _ = run("--target", "jetson-orin-nx-16gb")
    assert code == 1
    assert "cannot prepare: exporting needs torch, onnx, onnxruntime" in out


def test_doctor_command_unknown_target_exits_with_1(run):
    code, out, err = run("--target", "orin")
    assert (code, out) == (1, "")
    assert "no target 'orin'" in err
