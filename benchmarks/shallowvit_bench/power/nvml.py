"""Sample an NVIDIA GPU through NVML: energy or power, clocks, temperature, memory, and what holds its clocks down.

A newcomer's trap: NVML opens on a Jetson and gives a name, and then refuses nearly every figure, so each is tried once and
dropped where it isn't supported.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from .sampling import PollingSampler, PowerSource, Unavailable
from .trace import Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

__all__ = ["NvmlGpu", "open_nvml", "throttle_sentences"]

_NAME = "NVML"
_PERIOD_S = 0.1  # assumed of the counter and of power; a counter that is slower shows in its figures
_LOOK_S = 0.05
_CLOCKS_LOOK_S = 0.25
_AVERAGED_OVER_S = 1.0  # nvmlDeviceGetPowerUsage, on Ampere and later except GA100
_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, milliwatts
_CLOCKS = {"sm": 1, "memory": 2}
# Of nvmlDeviceGetCurrentClocksEventReasons. Idle (0x1), clocks that somebody set (0x2) and a display (0x100) are no throttling.
_THROTTLE_BITS = {
    0x4: "the GPU's clocks were held down by its power limit (SwPowerCap)",
    0x8: "the GPU's clocks were cut to half or less by its hardware (HwSlowdown)",
    0x20: "the GPU's clocks were held down for its temperature (SwThermalSlowdown)",
    0x40: "the GPU's clocks were cut to half or less for its temperature (HwThermalSlowdown)",
    0x80: "the GPU's clocks were cut to half or less by the power supply (HwPowerBrakeSlowdown)",
}


def throttle_sentences(bits: int) -> tuple[str, ...]:
    """Return what holds the clocks down, of the bits that NVML gives; those that are no throttling are left out."""
    return tuple(text for bit, text in _THROTTLE_BITS.items() if bits & bit)


def open_nvml(stack: ExitStack, gpu: str | None = None) -> NvmlGpu | Unavailable:
    """Open a GPU, or say why there is none.

    Args:
        stack: Closes NVML.
        gpu: Its PCI bus id, as ``0000:01:00.0``; None: the first.
    """
    try:
        import pynvml
    except ImportError:
        return Unavailable(_NAME, "the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
        stack.callback(pynvml.nvmlShutdown)
        handle = _handle(pynvml, gpu)
        name = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as err:
        return Unavailable(_NAME, f"no GPU can be opened ({err})")
    return NvmlGpu(pynvml, handle, name.decode() if isinstance(name, bytes) else name)


def _handle(nvml: Any, bus_id: str | None) -> Any:
    if bus_id is not None:
        try:
            return nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        except nvml.NVMLError:
            if nvml.nvmlDeviceGetCount() != 1:  # the only one may be on no bus that NVML knows, as on a Jetson
                raise
    return nvml.nvmlDeviceGetHandleByIndex(0)


class NvmlGpu:
    """A GPU that NVML opened, with the figures that it gives."""

    def __init__(self, nvml: Any, handle: Any, name: str) -> None:
        self._nvml, self._handle, self.name = nvml, handle, name
        self._memory = self._given(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20)
        self._temperature = self._given(lambda: float(nvml.nvmlDeviceGetTemperature(handle, 0)))
        self._clocks = {
            unit: look
            for unit, number in _CLOCKS.items()
            if (look := self._given(partial(nvml.nvmlDeviceGetClockInfo, handle, number)))
        }
        self._reasons = self._given(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or self._given(
            lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # drivers before 535
        )
        self._joules = self._given(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
        self._instant = None if self._joules else self._given(self._power_instant)
        usage = None if self._joules or self._instant else self._given(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
        self._watts = self._instant or usage

    @property
    def gives_anything(self) -> bool:
        """Whether there is any figure to sample."""
        return any((self._joules, self._watts, self._clocks, self._temperature, self._reasons, self._memory))

    def power_source(self) -> PowerSource | Unavailable:
        """Return the best of its figures as a source: the counter of energy, power now, power of the last second."""
        if self._joules is None and self._watts is None:
            return Unavailable(_NAME, f"{self.name} gives neither energy nor power")
        figure = "energy counter" if self._joules else "power now" if self._instant else "power averaged over a second"
        averaging_s = 0.0 if self._joules or self._instant else _AVERAGED_OVER_S
        covers = f"{_NAME} {figure} of {self.name}: the card, without the rest of the machine"
        return PowerSource(covers, self.sampler, _PERIOD_S, averaging_s, settle_s=2.5 * _PERIOD_S, covers=("gpu",))

    def sampler(self, source: PowerSource | None = None) -> PollingSampler:
        """Return a sampler of all it gives, without power where another sensor is the source, whose figures they would join."""
        return PollingSampler(_NAME, partial(self._look, bool(source)), _LOOK_S if source else _CLOCKS_LOOK_S, source)

    def _look(self, power: bool) -> Reading:
        moment = time.perf_counter()
        try:
            return Reading(
                time_s=moment,
                since_s=moment,
                watts=self._watts() if power and self._watts else None,
                joules=self._joules() if power and self._joules else None,
                temperatures_c={"gpu": self._temperature()} if self._temperature else {},
                clocks_mhz={unit: float(look()) for unit, look in self._clocks.items()},
                throttled=throttle_sentences(self._reasons()) if self._reasons else (),
                ram_mib=self._memory() if self._memory else None,
            )
        except self._nvml.NVMLError as err:
            raise BenchError(f"NVML said {err}") from err

    def _power_instant(self) -> float:
        field = self._nvml.nvmlDeviceGetFieldValues(self._handle, [_POWER_INSTANT])[0]
        if field.nvmlReturn != 0:
            raise self._nvml.NVMLError(field.nvmlReturn)
        return field.value.uiVal / 1e3

    def _given(self, look: Callable[[], Any]) -> Callable[[], Any] | None:
        """The same function if the GPU gives its figure, else None."""
        try:
            look()
        except (self._nvml.NVMLError, AttributeError):  # an older nvidia-ml-py lacks some functions
            return None
        return look
