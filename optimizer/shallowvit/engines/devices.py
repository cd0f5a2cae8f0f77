"""NVIDIA devices as data: what each can hold, move and compute, and how well each figure is known.

A newcomer's trap: rates are dense. Most published ones are of sparse tensor cores, or add the DLA to the GPU; such a figure
stands in a note and never in a cell. Compute capabilities are from NVIDIA's tables.
"""

from __future__ import annotations

from .target_records import UNKNOWN, Figure, Kind, PowerMode, Provenance, Target

__all__ = ["DEVICES"]


def _vendor(value: float, note: str = "") -> Figure:
    return Figure(value, Provenance.VENDOR, note)


def _several(value: float, note: str = "") -> Figure:
    return Figure(value, Provenance.SEVERAL, note)


def _one(value: float, note: str = "") -> Figure:
    return Figure(value, Provenance.ONE_SOURCE, note)


def _derived(value: float, note: str = "") -> Figure:
    return Figure(value, Provenance.DERIVED, note)


def _missing(note: str) -> Figure:
    return Figure(None, note=note)


def _modes(*names: str, default: str = "") -> tuple[PowerMode, ...]:
    """Modes numbered from 0 in this order."""
    return tuple(PowerMode(name, number, name == default) for number, name in enumerate(names))


def _unnumbered(*names: str) -> tuple[PowerMode, ...]:
    return tuple(PowerMode(name) for name in names)


_NANO_MODES = _modes("MAXN", "5W")
_NANO_PEAKS = (("fp16", _several(0.472, "no tensor cores")), ("int8", _missing("no INT8 path")))
_TX2_MODES = _modes("MAXN", "MAXQ", "MAXP_CORE_ALL", "MAXP_CORE_ARM", "MAXP_CORE_DENVER")
_TX2_PEAKS = (("fp16", _several(1.33)), ("int8", _missing("no INT8 path")))
_XAVIER_NX_PEAKS = (
    ("fp16", _missing("1.69 is the figure of the CUDA cores; that of the tensor cores was not read")),
    ("int8", _missing("21 in total with the DLA (B)")),
)
_XAVIER_NX_MODES = _unnumbered("10W", "15W", "20W")
_AGX_XAVIER_PEAKS = (("int8", _missing("32 in total with the DLA (B)")),)
_AGX_XAVIER_MODES = _modes("MAXN", "10W", "15W", "30W_ALL", "30W_6CORE", "30W_4CORE", "30W_2CORE", default="15W")
_UNCOUNTED = "has DLA; their number was not read"
_MODES_READ = "families of modes; the full list of ids was not read"
_SUPER_NOTE = "needs JetPack 6.2 or later with the board's Super configuration"

_NANO_TO_XAVIER = (
    Target(
        "jetson-nano-4gb",
        "Jetson Nano 4 GB",
        Kind.JETSON,
        53,
        Figure(4),
        UNKNOWN,
        _NANO_PEAKS,
        "nano",
        power_modes=_NANO_MODES,
        shared_memory=True,
    ),
    Target(
        "jetson-nano-2gb",
        "Jetson Nano 2 GB",
        Kind.JETSON,
        53,
        Figure(2),
        UNKNOWN,
        _NANO_PEAKS,
        "nano",
        power_modes=_NANO_MODES,
        shared_memory=True,
    ),
    Target(
        "jetson-tx2-8gb",
        "Jetson TX2 8 GB",
        Kind.JETSON,
        62,
        Figure(8),
        UNKNOWN,
        _TX2_PEAKS,
        "tx2",
        power_modes=_TX2_MODES,
        shared_memory=True,
    ),
    Target(
        "jetson-tx2-4gb",
        "Jetson TX2 4 GB",
        Kind.JETSON,
        62,
        Figure(4),
        UNKNOWN,
        _TX2_PEAKS,
        "tx2",
        power_modes=_TX2_MODES,
        shared_memory=True,
    ),
    Target(
        "jetson-tx2-nx",
        "Jetson TX2 NX",
        Kind.JETSON,
        62,
        UNKNOWN,
        UNKNOWN,
        _TX2_PEAKS,
        "tx2",
        power_modes=_TX2_MODES,
        shared_memory=True,
    ),
    Target(
        "jetson-xavier-nx-8gb",
        "Jetson Xavier NX 8 GB",
        Kind.JETSON,
        72,
        Figure(8),
        UNKNOWN,
        _XAVIER_NX_PEAKS,
        "xavier-nx",
        dla=None,
        dla_note=_UNCOUNTED,
        power_modes=_XAVIER_NX_MODES,
        power_note=_MODES_READ,
        shared_memory=True,
    ),
    Target(
        "jetson-xavier-nx-16gb",
        "Jetson Xavier NX 16 GB",
        Kind.JETSON,
        72,
        Figure(16),
        UNKNOWN,
        _XAVIER_NX_PEAKS,
        "xavier-nx",
        dla=None,
        dla_note=_UNCOUNTED,
        power_modes=_XAVIER_NX_MODES,
        power_note=_MODES_READ,
        shared_memory=True,
    ),
    *(
        Target(
            f"jetson-agx-xavier-{name.lower().replace(' ', '')}",
            f"Jetson AGX Xavier {name}",
            Kind.JETSON,
            72,
            Figure(memory),
            UNKNOWN,
            _AGX_XAVIER_PEAKS,
            "agx-xavier",
            dla=None,
            dla_note=_UNCOUNTED,
            power_modes=_AGX_XAVIER_MODES,
            shared_memory=True,
        )
        for name, memory in (
            ("16 GB", 16),
            ("32 GB", 32),
            ("64 GB", 64),
            ("Industrial", None),
        )
    ),
)

_ORIN_NANO = (
    Target(
        "jetson-orin-nano-4gb",
        "Jetson Orin Nano 4 GB",
        Kind.JETSON,
        87,
        Figure(4, note="64-bit"),
        UNKNOWN,
        (("int8", _vendor(10, "20 sparse")),),
        "orin-nano",
        power_modes=_modes("10W", "7W_AI", "7W_CPU"),
        shared_memory=True,
    ),
    Target(
        "jetson-orin-nano-4gb-super",
        "Jetson Orin Nano 4 GB, Super modes",
        Kind.JETSON,
        87,
        Figure(4, note="64-bit"),
        _one(51),
        (("int8", _derived(17, "34 sparse")),),
        "orin-nano",
        power_note="not read for the Super modes",
        shared_memory=True,
        since="6.2",
        notes=(_SUPER_NOTE,),
    ),
    Target(
        "jetson-orin-nano-8gb",
        "Jetson Orin Nano 8 GB",
        Kind.JETSON,
        87,
        Figure(8, note="128-bit"),
        Figure(68),
        (("int8", _derived(20, "40 sparse")),),
        "orin-nano",
        power_modes=_modes("15W", "7W"),
        shared_memory=True,
    ),
    Target(
        "jetson-orin-nano-8gb-super",
        "Jetson Orin Nano 8 GB, Super modes",
        Kind.JETSON,
        87,
        Figure(8, note="128-bit"),
        Figure(102),
        (("int8", _derived(33.5, "67 sparse")),),
        "orin-nano",
        power_modes=_modes("15W", "25W", "MAXN_SUPER"),
        shared_memory=True,
        since="6.2",
        notes=(_SUPER_NOTE,),
    ),
)

_ORIN = (
    *_ORIN_NANO,
    Target(
        "jetson-orin-nx-8gb",
        "Jetson Orin NX 8 GB",
        Kind.JETSON,
        87,
        Figure(8),
        UNKNOWN,
        (("int8", _missing("70 sparse in total with the DLA, 117 in Super modes (B)")),),
        "orin-nx",
        dla=1,
        dla_note="NVDLA v2 (C)",
        power_modes=_modes("MAXN", "10W", "15W", "20W"),
        power_note="Super modes of JetPack 6.2 and later: 10 to 40 W, their ids not read",
        shared_memory=True,
    ),
    Target(
        "jetson-orin-nx-16gb",
        "Jetson Orin NX 16 GB",
        Kind.JETSON,
        87,
        Figure(16),
        UNKNOWN,
        (("int8", _missing("100 sparse in total with the DLA, 157 in Super modes (B)")),),
        "orin-nx",
        dla=2,
        dla_note="NVDLA v2 (C)",
        power_modes=_modes("MAXN", "10W", "15W", "25W"),
        power_note="Super modes of JetPack 6.2 and later add 40W and MAXN_SUPER, their ids not read",
        shared_memory=True,
    ),
    Target(
        "jetson-agx-orin-32gb",
        "Jetson AGX Orin 32 GB",
        Kind.JETSON,
        87,
        Figure(32),
        _vendor(204.8, "DS-10662-001 v1.8, quoted"),
        (("int8", _missing("200 sparse in total with the DLA")),),
        "agx-orin",
        dla=None,
        dla_note=_UNCOUNTED,
        power_modes=_modes("MAXN", "MODE_15W", "MODE_30W", "MODE_40W", default="MODE_30W"),
        shared_memory=True,
    ),
    Target(
        "jetson-agx-orin-64gb",
        "Jetson AGX Orin 64 GB",
        Kind.JETSON,
        87,
        Figure(64, note="a developer kit shows 30.5 to 62"),
        Figure(204.8),
        (("int8", _missing("275 sparse in total with the DLA")),),
        "agx-orin",
        dla=2,
        power_modes=_modes("MAXN", "MODE_15W", "MODE_30W", "MODE_50W", default="MODE_30W"),
        shared_memory=True,
    ),
)

_THOR = (
    Target(
        "jetson-thor-t4000",
        "Jetson Thor T4000",
        Kind.JETSON,
        110,
        Figure(64, note="LPDDR5X"),
        Figure(273),
        (
            ("fp16", _derived(150, "1200 sparse FP4 / 8")),
            ("int8", _derived(300, "600 sparse INT8 / 2")),
            ("fp4", Figure(600)),
        ),
        "thor",
        power_note="40 to 70 W; the list of ids was not read",
        shared_memory=True,
    ),
    Target(
        "jetson-thor-t5000",
        "Jetson Thor T5000",
        Kind.JETSON,
        110,
        Figure(128, note="LPDDR5X"),
        Figure(273),
        (
            ("fp16", _one(258.5, "half of 517 sparse")),
            ("int8", _one(517, "half of 1035 sparse")),
            ("fp8", _one(517)),
            ("fp4", _one(1035)),
        ),
        "thor",
        power_modes=_modes("MAXN", "120W", "90W", "70W", default="120W"),
        shared_memory=True,
    ),
)

_DATACENTER = (
    Target(
        "t4",
        "T4",
        Kind.DATACENTER,
        75,
        Figure(16, note="GDDR6"),
        Figure(320),
        (("fp16", Figure(65)), ("int8", Figure(130))),
        board_w=70,
    ),
    Target(
        "a2",
        "A2",
        Kind.DATACENTER,
        86,
        Figure(16),
        UNKNOWN,
        (("fp16", Figure(18.1)), ("int8", Figure(36.3))),
        board_w=60,
    ),
    Target(
        "l4",
        "L4",
        Kind.DATACENTER,
        89,
        Figure(24),
        UNKNOWN,
        (
            ("fp16", Figure(121, note="as a datasheet is quoted; 125.3 from its clocks")),
            ("int8", _missing("250.7 from its clocks; half of 485 sparse would be 242; neither is a datasheet's text")),
        ),
        board_w=72,
    ),
    Target(
        "l40s",
        "L40S",
        Kind.DATACENTER,
        89,
        Figure(48),
        Figure(864),
        (("fp16", Figure(362)), ("int8", Figure(733, note="732.9 from its clocks")), ("fp8", Figure(733))),
        board_w=300,
    ),
    *(
        Target(
            f"a100-{memory}gb",
            f"A100 {memory} GB",
            Kind.DATACENTER,
            80,
            Figure(memory),
            Figure(bandwidth),
            (("fp16", Figure(312)), ("int8", Figure(624))),
            board_w=400,
            notes=("400 W is the SXM board's limit",),
        )
        for memory, bandwidth in ((40, 1555), (80, 2039))
    ),
    Target(
        "h100-sxm",
        "H100 SXM",
        Kind.DATACENTER,
        90,
        Figure(80),
        Figure(3350),
        (("fp16", Figure(989)), ("int8", Figure(1979)), ("fp8", Figure(1979))),
        board_w=700,
    ),
    Target("h100-pcie", "H100 PCIe", Kind.DATACENTER, 90, Figure(80), UNKNOWN, (("fp16", Figure(756)),)),
    Target("h100-nvl", "H100 NVL", Kind.DATACENTER, 90, UNKNOWN, UNKNOWN, (("fp16", Figure(835)),)),
    Target(
        "h200",
        "H200",
        Kind.DATACENTER,
        90,
        Figure(141),
        Figure(4800),
        (("fp16", Figure(989)), ("int8", Figure(1979)), ("fp8", Figure(1979))),
        board_w=700,
    ),
    Target(
        # of two published bandwidths the higher: a bound on latency must hold for both
        "b200",
        "B200",
        Kind.DATACENTER,
        100,
        Figure(180, note="192 on some pages"),
        Figure(8000, note="7700 on some pages"),
        (("fp16", Figure(2250)), ("int8", Figure(4500)), ("fp8", Figure(4500))),
        board_w=1000,
    ),
)

_DESKTOP = (
    Target(
        "rtx-4090",
        "GeForce RTX 4090",
        Kind.GEFORCE,
        89,
        Figure(24),
        Figure(1008),
        (
            ("fp16", Figure(165.2, note="accumulates in fp32; Ada whitepaper, quoted")),
            ("fp16-accumulate", _derived(330.4, "twice the rate with fp32")),
        ),
        board_w=450,
    ),
    Target(
        "rtx-5090",
        "GeForce RTX 5090",
        Kind.GEFORCE,
        120,
        Figure(32),
        Figure(1792),
        (
            ("fp16", Figure(209.5, note="accumulates in fp32; Blackwell whitepaper, quoted")),
            ("fp16-accumulate", Figure(419)),
            ("int8", Figure(838)),
        ),
    ),
    Target(
        "dgx-spark",
        "DGX Spark (GB10)",
        Kind.WORKSTATION,
        121,
        Figure(128, note="shared with the CPU"),
        UNKNOWN,
        (("fp4", Figure(500)),),
        dla=None,
        shared_memory=True,
    ),
)

DEVICES = (*_NANO_TO_XAVIER, *_ORIN, *_THOR, *_DATACENTER, *_DESKTOP)
