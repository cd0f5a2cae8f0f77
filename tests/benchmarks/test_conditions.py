import pytest

from shallowvit.engines.targets import Kind, all_targets
from shallowvit_bench.boards import board_sm
from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.probes import Output

CLOCKS = """\
GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
"""
NOT_ROOT = Output(1, "Error: Run this script(/usr/bin/jetson_clocks) as a root user\n", "")  # Thor, and Orin under JetPack 7
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/meminfo": "MemTotal:       7802880 kB\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64\n",
    "sys/class/hwmon/hwmon0/name": "pwmfan\n",
    "sys/class/hwmon/hwmon0/pwm1": "88\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.68"}, "nvcc" : {"version" : "12.6.1"}}',
}


def _root(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def _run(**outputs):
    return lambda words: outputs.get(words[0].replace("-", "_"))


def test_read_conditions_of_an_orin_nano_names_board_release_mode_and_clocks(tmp_path):
    run = _run(nvpmodel=Output(0, "NV Power Mode: MAXN_SUPER\n2\n", ""), jetson_clocks=Output(0, CLOCKS, ""))
    found = read_conditions(6, _root(tmp_path, ORIN_NANO), run)
    assert (found.board, found.gpu_sm) == ("jetson-orin-nano-8gb-super", 87)
    assert (found.jetpack, found.l4t, found.cuda) == ("6.2.1", "36.4.4", "12.6.68")
    assert (found.power_mode, found.clocks_locked, found.fan) == ("MAXN_SUPER (2)", True, "pwm 88 of 255")


def test_read_conditions_without_root_sees_free_clocks_in_devfreq(tmp_path):
    assert read_conditions(None, _root(tmp_path, ORIN_NANO), _run(jetson_clocks=NOT_ROOT)).clocks_locked is False


def test_read_conditions_without_root_leaves_a_fixed_gpu_clock_unknown_for_the_memory_may_be_free(tmp_path):
    root = _root(tmp_path, ORIN_NANO | {"sys/class/devfreq/17000000.gpu/min_freq": "1020000000\n"})
    assert read_conditions(None, root, _run(jetson_clocks=NOT_ROOT)).clocks_locked is None


def test_read_conditions_reads_power_mode_and_clocks_each_time(tmp_path):
    root, modes = _root(tmp_path, ORIN_NANO), iter(["15W\n0\n", "25W\n1\n"])
    asked = {"nvpmodel": lambda: Output(0, f"NV Power Mode: {next(modes)}", "")}
    found = [read_conditions(None, root, lambda words: asked[words[0]]() if words[0] in asked else None) for _ in range(2)]
    assert [conditions.power_mode for conditions in found] == ["15W (0)", "25W (1)"]


def test_read_conditions_of_a_card_asks_nvidia_smi_once_a_process(tmp_path):
    asked = []

    def run(words):
        asked.append(words[0])
        return Output(0, "NVIDIA H100 80GB HBM3, 580.65.06, 81559, 9.0, 700.00\n", "")

    for _ in range(2):
        found = read_conditions(None, tmp_path, run)
    assert (found.gpu, found.gpu_driver, found.gpu_sm) == ("NVIDIA H100 80GB HBM3", "580.65.06", 90)
    assert (found.board, found.clocks_locked) == (None, None)
    assert asked == ["nvidia-smi"]


@pytest.mark.parametrize(
    ("file", "text", "turbo"),
    [
        ("intel_pstate/no_turbo", "0\n", True),
        ("intel_pstate/no_turbo", "1\n", False),
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
        ("cpufreq/boost", "\n", None),
    ],
)
def test_read_conditions_knows_turbo_by_either_driver(tmp_path, file, text, turbo):
    root = _root(tmp_path, {f"sys/devices/system/cpu/{file}": text})
    assert read_conditions(None, root, _run()).turbo is turbo


def test_read_conditions_without_nvidia_smi_has_the_loaded_drivers_version(tmp_path):
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    root = _root(tmp_path, {"proc/driver/nvidia/version": line})
    assert read_conditions(None, root, _run()).gpu_driver == "580.65.06"


def test_read_conditions_of_jetpack_4_reads_the_old_files_of_cuda_and_fan(tmp_path):
    files = {"usr/local/cuda/version.txt": "CUDA Version 10.2.300\n", "sys/devices/pwm-fan/target_pwm": "120\n"}
    found = read_conditions(None, _root(tmp_path, files), _run())
    assert (found.cuda, found.fan) == ("10.2.300", "pwm 120 of 255")


def test_read_conditions_of_an_empty_root_guesses_nothing(tmp_path):
    found = read_conditions(None, tmp_path, _run())
    unread = (found.device, found.board, found.jetpack, found.l4t, found.power_mode, found.clocks_locked)
    assert {*unread, found.gpu, found.gpu_driver, found.gpu_sm, found.cuda, found.fan, found.turbo} == {None}


def test_board_sm_is_that_of_the_targets():
    boards = [target for target in all_targets() if target.kind is Kind.JETSON]
    assert {target.key: board_sm(target.key) for target in boards} == {target.key: target.sm for target in boards}
