"""Text of Jetson boards, and a root folder that looks like one.

Captured on boards by others: ``RELEASES``, ``POWER_MODES``, ``CLOCKS_ORIN_NANO_LOCKED``, ``NOT_ROOT`` and the names of the Thor
and Orin boards. Of ``CLOCKS_ORIN_NX_FREE`` and ``CLOCKS_TX2`` a few lines were captured and the others are written after them;
``CLOCKS_AGX_ORIN_39``, ``MODES_CONF``, the sizes of memory in ``BOARDS``, and the names of older boards are written after
descriptions.
"""

RELEASES = {  # first line of /etc/nv_tegra_release -> L4T, JetPack
    "# R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t186ref, EABI: aarch64, DATE: Wed Feb  2 21:33:23 UTC 2022": (
        "32.7.1",
        "4.6.1",
    ),
    "# R35 (release), REVISION: 3.1, GCID: 32790763, BOARD: t186ref, EABI: aarch64, DATE: Wed Mar 15 07:54:12 UTC 2023": (
        "35.3.1",
        "5.1.1",
    ),
    "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025": (
        "36.4.4",
        "6.2.1",
    ),
    "# R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64, DATE: Wed Dec 31 00:15:19 UTC 2025": (
        "38.4.0",
        "7.1",
    ),
    "# R39 (release), REVISION: 2.1, GCID: 46758480, BOARD: generic, EABI: aarch64, DATE: Fri Aug 7 05:54:22 AM UTC 2026": (
        "39.2.1",
        "7.2.1",
    ),
}

POWER_MODES = {  # nvpmodel -q -> name, number
    "NV Power Mode: MAXN_SUPER\n2\n": ("MAXN_SUPER", 2),  # Orin Nano, JetPack 6.2
    "NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n": ("MAXN", 0),
    "NV Power Mode: 5W\n1\n": ("5W", 1),  # Nano
    "NV Power Mode: MODE_30W\n": ("MODE_30W", None),  # AGX Orin
    "NV Power Mode: 25W\n1\n": ("25W", 1),
    "NV Power Mode: 120W / 1\n": ("120W", 1),  # Thor
}

CLOCKS_ORIN_NANO_LOCKED = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-5
cpu0: Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000
cpu1: Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000
GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000
Active GPU TPCs: 8
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
FAN Dynamic Speed Control=kernel hwmon0_pwm1=88
NV Power Mode: MAXN_SUPER
"""
CLOCKS_ORIN_NX_FREE = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin NX Engineering Reference Developer Kit
Online CPUs: 0-3
GPU MinFreq=306000000 MaxFreq=624750000 CurrentFreq=306000000
Active GPU TPCs: 2
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
"""
CLOCKS_TX2 = "SOC family:tegra186  Machine:quill\nOnline CPUs: 0-5\nFan: speed=0\n"
CLOCKS_AGX_ORIN_39 = """\
SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-11, Offline CPUs:\x20
cpu0: Governor=schedutil MinFreq=2201600 MaxFreq=2201600 CurrentFreq=2201600 IdleStates: WFI=0 c7=0
GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
"""
NOT_ROOT = "Error: Run this script(/usr/bin/jetson_clocks) as a root user\n"  # Thor, and Orin under JetPack 7

MODES_CONF = """\
< POWER_MODEL ID=0 NAME=15W >
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""
MODES_VERBOSE = """\
NVPM VERB: PM_CONFIG: DEFAULT=MODE_30W(2)
NVPM VERB: POWER_MODEL: ID=3 NAME=MODE_50W
"""

# name in the device tree, kB of memory that the system shows, target
BOARDS = [
    ("NVIDIA Jetson AGX Thor Developer Kit", 125772 * 1024, "jetson-thor-t5000"),
    ("NVIDIA Jetson AGX Thor Developer Kit", 62000 * 1024, "jetson-thor-t4000"),
    ("NVIDIA Jetson AGX Orin Developer Kit", 62841 * 1024, "jetson-agx-orin-64gb"),
    ("NVIDIA Jetson AGX Orin Developer Kit", int(30.5 * 2**20), "jetson-agx-orin-32gb"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", int(15.3 * 2**20), "jetson-orin-nx-16gb"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", int(7.3 * 2**20), "jetson-orin-nx-8gb"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7620 * 1024, "jetson-orin-nano-8gb-super"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit", 7620 * 1024, "jetson-orin-nano-8gb"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 3500 * 1024, "jetson-orin-nano-4gb-super"),
    ("Lanner EAI-I233 Jetson AGX Orin", 62841 * 1024, "jetson-agx-orin-64gb"),
    ("Jetson AGX Orin for DSBOARD-AGX", 30500 * 1024, "jetson-agx-orin-32gb"),
    ("NVIDIA Jetson AGX Xavier", 15692 * 1024, "jetson-agx-xavier-16gb"),
    ("NVIDIA Jetson Xavier NX Developer Kit", 7772 * 1024, "jetson-xavier-nx-8gb"),
    ("NVIDIA Jetson TX2", 7829 * 1024, "jetson-tx2-8gb"),
    ("NVIDIA Jetson TX2 NX", 3829 * 1024, "jetson-tx2-nx"),
    ("NVIDIA Jetson Nano Developer Kit", 3964 * 1024, "jetson-nano-4gb"),
    ("NVIDIA Jetson Nano 2GB Developer Kit", 1980 * 1024, "jetson-nano-2gb"),
]

ORIN_NANO, ORIN_NANO_KB, _ = BOARDS[6]
R36 = next(line for line in RELEASES if line.startswith("# R36"))


def write_root(root, files):
    """Write files under a folder that stands for ``/``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


def board_root(root, model, memory_kb, **files):
    """A root with the name of a board as the device tree has it, with its last NUL, and its memory."""
    meminfo = f"MemTotal:       {memory_kb} kB\nMemFree:  100 kB\nMemAvailable:    {memory_kb // 2} kB\n"
    return write_root(root, {"proc/device-tree/model": model + "\0", "proc/meminfo": meminfo} | files)
