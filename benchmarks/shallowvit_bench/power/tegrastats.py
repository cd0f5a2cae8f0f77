"""Turn a line of ``tegrastats`` into a record, for every board and JetPack generation that a line was captured of.

Spelling and tokens change with each release, so what isn't known is kept in ``unknown`` and never stops the parser. A
newcomer's trap: a Thor prints the clocks of its GPU and no load, and the absent load is None and not 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["Load", "Memory", "Rail", "Tegrastats", "parse_tegrastats"]


@dataclass(frozen=True)
class Memory:
    """Memory in MiB, as tegrastats counts MB; ``largest_mib`` is the largest free block, ``cached_mib`` of the swap."""

    used_mib: float
    total_mib: float
    largest_mib: float | None = None
    largest_blocks: int | None = None
    cached_mib: float | None = None


@dataclass(frozen=True)
class Load:
    """How busy a unit is and at what clocks, one for each of its clusters. None was not printed, and off is ``on`` False."""

    percent: int | None = None
    clocks_mhz: tuple[int, ...] = ()
    on: bool = True


@dataclass(frozen=True)
class Rail:
    """Power of a supply rail in milliwatts: now, and averaged since tegrastats began.

    JetPack 7.2 prints a third value whose meaning was not read.
    """

    now_mw: int
    average_mw: int | None = None
    third_mw: int | None = None


@dataclass(frozen=True)
class Tegrastats:
    """One line.

    Args:
        time: As printed, in the board's own zone; JetPack 4 prints none.
        cpus: One for each core, in order.
        gpus: By name without ``_FREQ``: GR3D, and GR3D2 on the first Orins.
        engines: Every other unit by name without ``_FREQ``; the audio engine APE too.
        translation_percent: Of a Denver or Carmel CPU: foreground, background.
        temperatures_c: By zone, where a sensor measured.
        unmeasured: Zones whose figure is none: -256 C is a sensor without power, and PMIC prints a constant.
        rails: By name; those not connected (NC) are left out.
        unknown: Tokens that are none of these, in order, and a second figure for a name that has one.
    """

    time: str | None = None
    ram: Memory | None = None
    swap: Memory | None = None
    iram: Memory | None = None
    cpus: tuple[Load, ...] = ()
    memory_load: Load | None = None
    gpus: dict[str, Load] = field(default_factory=dict)
    engines: dict[str, Load] = field(default_factory=dict)
    translation_percent: tuple[int, int] | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()
    rails: dict[str, Rail] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


_NUMBER = r"[0-9]{1,9}"
_CLOCKS = rf"@(?P<clocks>{_NUMBER}|\[{_NUMBER}(?:,{_NUMBER})*\])"
_LOAD = rf"(?:(?P<off>off)|(?P<percent>{_NUMBER})%(?:{_CLOCKS})?|{_CLOCKS.replace('clocks', 'only')}|(?P<bare>{_NUMBER}))"
_CORE = rf"(?:off|{_NUMBER}%(?:@{_NUMBER})?)"
_BLOCK = rf"(?P<blocks>{_NUMBER})x(?P<size>{_NUMBER})(?P<unit>[kMG]B)"
_DEGREES = r"(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)C"
# Video, vision and audio units. GR3D is the GPU, EMC the memory.
_UNITS = r"NVENC|NVDEC|NVJPG|NVDLA|MSENC|VIC|OFA|PVA|APE|SE|VI|ISP"

# What can stand at a place, the first that fits; each ends at a space or the end of the line.
_TOKENS = {
    "time": re.compile(r"([0-9]{2}-[0-9]{2}-[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2})(?!\S)"),
    "memory": re.compile(
        rf"(?P<name>RAM|SWAP|IRAM) (?P<used>{_NUMBER})/(?P<total>{_NUMBER})(?P<scale>[kMG]B)"
        rf"(?: ?\((?:lfb {_BLOCK}|lfb (?P<block>{_NUMBER})(?P<block_unit>[kMG]B)|cached (?P<cached>{_NUMBER})MB)\))?(?!\S)"
    ),
    "cpu": re.compile(rf"CPU \[({_CORE}(?:,{_CORE})*)\](?!\S)"),
    "load": re.compile(rf"(?P<name>EMC|GR3D2?|(?:{_UNITS})[0-9]{{0,2}})(?:_FREQ)? {_LOAD}(?!\S)"),
    "translation": re.compile(rf"MTS fg ({_NUMBER})% bg ({_NUMBER})%(?!\S)"),
    "temperature": re.compile(rf"(?P<name>[A-Za-z][\w.-]*)@{_DEGREES}(?:/{_DEGREES})?(?!\S)"),
    "rail": re.compile(
        rf"(?P<name>[A-Za-z]\w*) (?:(?P<alone>{_NUMBER})mW|"
        rf"(?P<now>{_NUMBER})(?:mW)?/(?P<average>{_NUMBER})(?:mW)?(?:/(?P<third>{_NUMBER})(?:mW)?)?)(?!\S)"
    ),
}
_WORD = re.compile(r"\S+")
_NO_POWER_C = -256.0
_CONSTANT = "PMIC"  # 100 C or 50 C on every board
_NOT_CONNECTED = "NC"
_MIB = {"kB": 1 / 1024, "MB": 1.0, "GB": 1024.0}


def parse_tegrastats(line: str) -> Tegrastats:
    """Parse one line; nothing in it is an error, and what isn't known stands in ``unknown``."""
    taken = _Taken()
    at = 0
    while word := _WORD.search(line, at):
        at = word.start()
        for kind, pattern in _TOKENS.items():
            found = pattern.match(line, at)
            if found and taken.take(kind, found):
                break
        else:
            found = word
            taken.unknown.append(word[0])
        at = found.end()
    return taken.record()


class _Taken:
    """What was read of a line so far; ``take`` refuses a second figure for a name that has one."""

    def __init__(self) -> None:
        self.fields: dict[str, object] = {}
        self.gpus: dict[str, Load] = {}
        self.engines: dict[str, Load] = {}
        self.temperatures_c: dict[str, float] = {}
        self.unmeasured: list[str] = []
        self.rails: dict[str, Rail] = {}
        self.unknown: list[str] = []

    def take(self, kind: str, found: re.Match[str]) -> bool:
        """Keep what was found of a kind and return whether there was place for it."""
        if kind == "memory":
            return self._once(found["name"].lower(), _memory(found))
        if kind == "load":
            return self._load(found["name"], _load(found))
        if kind == "temperature":
            return self._temperature(found["name"], float(found[2]))
        if kind == "rail":
            return self._rail(found["name"], found)
        if kind == "cpu":
            return self._once("cpus", tuple(_core(text) for text in found[1].split(",")))
        if kind == "translation":
            return self._once("translation_percent", (int(found[1]), int(found[2])))
        return self._once("time", found[1])

    def record(self) -> Tegrastats:
        """Return it all."""
        return Tegrastats(
            gpus=self.gpus,
            engines=self.engines,
            temperatures_c=self.temperatures_c,
            unmeasured=tuple(self.unmeasured),
            rails=self.rails,
            unknown=tuple(self.unknown),
            **self.fields,  # type: ignore[arg-type]
        )

    def _once(self, name: str, value: object) -> bool:
        if name in self.fields:
            return False
        self.fields[name] = value
        return True

    def _load(self, name: str, load: Load) -> bool:
        if name == "EMC":
            return self._once("memory_load", load)
        units = self.gpus if name.startswith("GR3D") else self.engines
        return units.setdefault(name, load) is load

    def _temperature(self, zone: str, degrees: float) -> bool:
        if zone in self.temperatures_c or zone in self.unmeasured:
            return False
        if degrees <= _NO_POWER_C or zone == _CONSTANT:
            self.unmeasured.append(zone)
        else:
            self.temperatures_c[zone] = degrees
        return True

    def _rail(self, name: str, found: re.Match[str]) -> bool:
        if name == _NOT_CONNECTED:
            return True
        now, average, third = (int(text) if text else None for text in found.group("now", "average", "third"))
        rail = Rail(int(found["alone"]) if now is None else now, average, third)
        return self.rails.setdefault(name, rail) is rail


def _memory(found: re.Match[str]) -> Memory:
    scale = _MIB[found["scale"]]
    blocks, size, unit, block, block_unit = found.group("blocks", "size", "unit", "block", "block_unit")
    largest = int(size) * _MIB[unit] if size else int(block) * _MIB[block_unit] if block else None
    return Memory(
        used_mib=int(found["used"]) * scale,
        total_mib=int(found["total"]) * scale,
        largest_mib=largest,
        largest_blocks=int(blocks) if blocks else None,
        cached_mib=float(found["cached"]) if found["cached"] else None,
    )


def _load(found: re.Match[str]) -> Load:
    clocks = found["clocks"] or found["only"] or found["bare"]
    return Load(
        percent=int(found["percent"]) if found["percent"] else None,
        clocks_mhz=tuple(int(text) for text in clocks.strip("[]").split(",")) if clocks else (),
        on=found["off"] is None,
    )


def _core(text: str) -> Load:
    if text == "off":
        return Load(on=False)
    percent, _, clock = text.partition("%")
    return Load(int(percent), (int(clock[1:]),) if clock else ())
