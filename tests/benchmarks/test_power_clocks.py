import pytest

from shallowvit_bench.power.clocks import advise_clocks
from shallowvit_bench.probes import Output

LOCKED = """\
GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
"""
FREE = LOCKED.replace("MinFreq=1020000000", "MinFreq=306000000").replace("FreqOverride=1", "FreqOverride=0")
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/meminfo": "MemTotal:       7802880 kB\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
}
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


@pytest.fixture
def advice(tmp_path):
    """What is advised for files and for outputs of commands by their first word; nothing but what asks may be run."""
    asked = {"nvidia-smi", "nvpmodel", "jetson_clocks", "dpkg-query"}

    def advise(files, **outputs):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def run(words):
            assert words[0] in asked
            assert words[0] != "nvpmodel" or words[1:] == ("-q",)
            assert words[0] != "jetson_clocks" or words[1:] == ("--show",)
            assert words[0] != "nvidia-smi" or words[1].startswith("--query-gpu=")
            text = outputs.get(words[0].replace("-", "_"))
            return None if text is None else Output(0, text, "")

        return advise_clocks(tmp_path, run)

    return advise


def test_advise_clocks_of_a_free_orin_nano_sets_the_mode_by_name_and_keeps_the_old_state(advice):
    found = advice(ORIN_NANO, nvpmodel="NV Power Mode: 15W\n0\n", jetson_clocks=FREE)
    assert found.now == ("power mode 15W (0)", "clocks of GPU and memory follow the load")
    assert [command.partition("  #")[0] for command in found.commands] == [
        "sudo nvpmodel -m 2",
        "sudo jetson_clocks --store",
        "sudo jetson_clocks",
    ]
    assert [command.partition("  #")[0] for command in found.undo] == ["sudo jetson_clocks --restore", "sudo nvpmodel -m 0"]


def test_advise_clocks_of_a_locked_board_in_its_best_mode_has_nothing_to_run(advice):
    found = advice(ORIN_NANO, nvpmodel="NV Power Mode: MAXN_SUPER\n2\n", jetson_clocks=LOCKED)
    assert (found.commands, found.undo) == ((), ())
    assert found.now == ("power mode MAXN_SUPER (2)", "clocks of GPU and memory are fixed")


def test_advise_clocks_without_root_says_why_the_state_is_unknown(advice):
    refusal = "Error: Run this script(/usr/bin/jetson_clocks) as a root user\n"
    found = advice(ORIN_NANO, nvpmodel="NV Power Mode: MAXN_SUPER\n2\n", jetson_clocks=refusal)
    assert "as a root user" in found.now[1]
    assert "sudo jetson_clocks" in found.commands


def test_advise_clocks_of_a_card_fixes_gpu_and_memory_clocks_and_governor(advice):
    smi = "NVIDIA H100 80GB HBM3, 1980, 2619, 345, 2619, Disabled\n"
    found = advice({GOVERNOR: "schedutil\n"}, nvidia_smi=smi)
    assert [command.partition("  #")[0] for command in found.commands] == [
        "sudo nvidia-smi -pm 1",
        "sudo nvidia-smi -lgc 1980,1980",
        "sudo nvidia-smi -lmc 2619,2619",
        "sudo cpupower frequency-set -g performance",
    ]
    assert found.undo == ("sudo nvidia-smi -rgc", "sudo nvidia-smi -rmc", "sudo cpupower frequency-set -g schedutil")
    assert found.now[0].startswith("NVIDIA H100 80GB HBM3 at 345 MHz of at most 1980")


def test_advise_clocks_of_a_virtual_machine_says_there_is_nothing_to_fix(advice):
    found = advice({})
    assert (found.commands, found.undo) == ((), ())
    assert "virtual machine" in found.text()


def test_advise_clocks_text_tells_what_to_run_and_how_to_take_it_back(advice):
    text = advice({GOVERNOR: "powersave"}).text()
    assert text.splitlines()[-4:] == [
        "to fix the clocks, run yourself:",
        "  sudo cpupower frequency-set -g performance",
        "and afterwards:",
        "  sudo cpupower frequency-set -g powersave",
    ]
