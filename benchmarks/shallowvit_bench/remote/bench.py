"""Measure on devices over SSH, several at once: the rows of each, and for each that failed a sentence.

    connect -> probe -> send -> start -> follow -> rows home -> drop the run there

A newcomer's trap: all of that is one step that is done again from the top after the connection drops. Each part of it first
looks at what is there, so a second time costs a look, and a measurement that is going on is found again by the job's hash.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import socket
import time
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device_store import PREDICTIONS, ROWS
from ..errors import BenchError
from ..job import Job, json_from_job
from ..measurement import measurement_from_row
from .connection import (
    DroppedError,
    Timeouts,
    UnreachableError,
    ask,
    events,
    open_connection,
    open_files,
    python_command,
    ssh_package,
)
from .transfer import CACHE, Parcel, pack, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import asyncssh

    from ..config import BenchConfig
    from .registry import Device

__all__ = ["DeviceResult", "Order", "bench_on_device", "bench_on_devices", "probe_device", "remote_bench", "tidy_device"]

_FULL_BYTES = 1 << 20
_DEATHS = 2  # without a new row in between: then it's no accident
_LOOK_AGAIN_S = 3.0
_LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True)
class DeviceResult:
    """What came of one device.

    Args:
        device: Its name.
        rows: All that are finished, also when it failed later.
        files: The outputs behind the rows' accuracies, by the last part of the path that the row has in ``predictions``.
        failure: One sentence; None: everything was measured.
        sent_bytes: What was sent there; 0 when it had everything.
        picked_up: Whether the run was one that an earlier call had started.
    """

    device: str
    rows: tuple[dict[str, Any], ...]
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    failure: str | None = None
    sent_bytes: int = 0
    picked_up: bool = False


@dataclass(frozen=True)
class Order:
    """What to measure, the same for every device.

    Args:
        parcel: The files.
        config: Of the measurement.
        keep: Is given what came home of a device, as soon as it did; only then the run is removed there.
        wait: Whether to wait for others who measure there.
        timeouts: When to give up on a connection.
    """

    parcel: Parcel
    config: BenchConfig
    keep: Callable[[DeviceResult], None] = lambda _: None
    wait: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def id(self) -> str:
        """The same for the same job, so that a second call finds the first one's run."""
        content = [self.parcel.harness, self.parcel.bundles, self.parcel.data, asdict(self.config)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class _State:
    """What has been reached on a device, over all its connections."""

    rows: tuple[dict[str, Any], ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    sent_bytes: int = 0
    picked_up: bool = False
    started: bool = False
    connected: bool = False
    deaths: int = 0
    rows_at_death: int = -1
    moved_at: float = field(default_factory=time.monotonic)

    def result(self, device: Device, failure: str | None = None) -> DeviceResult:
        return DeviceResult(device.name, self.rows, self.files, failure, self.sent_bytes, self.picked_up)


def remote_bench(
    devices: Sequence[Device],
    bundles: Sequence[Path],
    config: BenchConfig,
    data: str | None = None,
    *,
    keep: Callable[[DeviceResult], None] = lambda _: None,
    wait: bool = False,
    timeouts: Timeouts | None = None,
    progress: Callable[[str, str], None] = lambda device, text: None,
) -> tuple[DeviceResult, ...]:
    """Measure bundles on devices, all at once; a device that fails has the reason in its result, and the others go on.

    Args:
        devices: From ``find_device``; names must differ.
        bundles: The side in question first, as in ``bench``.
        config: Of the measurement.
        data: As ``open_dataset`` takes it: ``demo``, or a file or folder here, which is sent; behind ``device:`` one there.
        keep: Is given what came home of each device, as soon as it did, so that an interruption can't lose it.
        wait: Whether to wait for others who measure there.
        timeouts: When to give up on a connection.
        progress: Told the device and what is going on there.

    Raises:
        BenchError: a file can't be read, two devices have the same name, or the user interrupts.
    """
    names = [device.name for device in devices]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BenchError(f"bench: device {', '.join(twice)} is given twice; name each once")
    order = Order(pack(bundles, data), config, keep, wait, timeouts or Timeouts())
    try:
        return asyncio.run(bench_on_devices(devices, order, progress))
    except KeyboardInterrupt:
        raise BenchError(
            f"bench: interrupted here; what has started on {', '.join(names)} goes on there. Pick its rows up with the same "
            "command, or end it with: shallowvit devices stop NAME"
        ) from None


async def bench_on_devices(
    devices: Sequence[Device], order: Order, progress: Callable[[str, str], None] = lambda device, text: None
) -> tuple[DeviceResult, ...]:
    """Measure on all devices at once."""
    return tuple(await asyncio.gather(*(bench_on_device(device, order, partial(progress, device.name)) for device in devices)))


async def bench_on_device(device: Device, order: Order, progress: Callable[[str], None] = lambda _: None) -> DeviceResult:
    """Measure on one device; whatever goes wrong there is in the result, with the rows that were finished before."""
    state, failure = _State(), None

    def moved(text: str) -> None:
        state.moved_at = time.monotonic()
        progress(text)

    try:
        await _until_done(device, order, state, moved)
    except BenchError as err:
        failure = str(err)
    return state.result(device, failure)


async def _until_done(device: Device, order: Order, state: _State, moved: Callable[[str], None]) -> None:
    """Do the whole of it, again from the top whenever the connection drops, as long as something moves in between."""
    pause = 0.5
    while True:
        begun = time.monotonic()
        try:
            async with _connection(device, order.timeouts) as connection:
                state.connected = True
                await _session(connection, device, order, state, moved)
                return
        except UnreachableError as err:
            if not state.connected:
                raise
            why = str(err)
        except DroppedError:
            why = f"{device.name}: the connection dropped"
            if time.monotonic() - begun > order.timeouts.patience_s:  # it stood for long, as while an engine is built
                state.moved_at = time.monotonic()
        if time.monotonic() - state.moved_at > order.timeouts.patience_s:
            goes_on = "; what has started there goes on, and the same command picks it up" if state.started else ""
            raise BenchError(f"{why}, for {order.timeouts.patience_s:g} s now{goes_on}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


@asynccontextmanager
async def _connection(device: Device, timeouts: Timeouts) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Connect, and turn the many ways in which asyncssh says that a connection is gone into one."""
    ssh = ssh_package()
    connection = await open_connection(device, timeouts)
    try:
        yield connection
    except (ssh.DisconnectError, ssh.ChannelOpenError, ssh.SFTPConnectionLost, ssh.SFTPNoConnection, ConnectionError) as err:
        raise DroppedError from err
    except ssh.Error as err:  # as a file that can't be read there; the other devices go on
        raise BenchError(f"{device.name}: SSH failed there ({err.reason}); look at it with: shallowvit devices probe") from err
    finally:
        connection.abort()


async def _session(
    connection: asyncssh.SSHClientConnection, device: Device, order: Order, state: _State, moved: Callable[[str], None]
) -> None:
    """Measure over one connection; every part looks first whether it is done already."""
    probed = await _probe_when_free(connection, device, order, moved)
    cache = probed["cache"]
    run = f"{cache}/runs/{order.id}"
    if probed["run"] in ("running", "finished", "unfinished") and not state.started:
        state.picked_up = True
        moved(f"going on with a run that an earlier call has begun ({probed['run']})")
    if probed["run"] in ("none", "unfinished"):
        state.sent_bytes += await send(connection, device, order.parcel, probed, moved)
        await ask(connection, device, "begin", id=order.id, job=_job_text(order, cache, run))
    state.started = True
    try:
        while await _ends_early(connection, device, order, cache, state, moved):
            pass
    except BenchError as err:
        await _fetch(connection, device, run, state)
        if state.rows:
            order.keep(state.result(device, str(err)))
        else:  # nothing to go on from
            await ask(connection, device, "drop", id=order.id)
        raise
    await _fetch(connection, device, run, state)
    if not state.rows:
        raise BenchError(f"{device.name}: the run there left no rows; another call of the same job may have brought them home")
    order.keep(state.result(device))
    await ask(connection, device, "drop", id=order.id)


async def _probe_when_free(
    connection: asyncssh.SSHClientConnection, device: Device, order: Order, moved: Callable[[str], None]
) -> dict[str, Any]:
    """Look what is there once nobody else measures: sending would disturb them."""
    while True:
        blobs = [(blob.sha256, blob.size) for blob in order.parcel.blobs]
        probed = await ask(connection, device, "probe", id=order.id, blobs=blobs)
        holder = probed["holder"]
        if holder is None or holder["id"] == order.id:
            return probed
        _refuse_unless_waiting(device, order, holder)
        moved(f"waiting for {holder['who']}, who measures there since {holder['since']}")
        await asyncio.sleep(_LOOK_AGAIN_S)


def _refuse_unless_waiting(device: Device, order: Order, holder: dict[str, Any]) -> None:
    if not order.wait:
        raise BenchError(
            f"{device.name}: {holder['who']} measures there since {holder['since']}, and two at once would disturb each other; "
            "try later, or wait for your turn with --wait"
        )


def _job_text(order: Order, cache: str, run: str) -> str:
    parcel = order.parcel
    data = parcel.data.replace(CACHE, cache) if parcel.data else None
    bundles = tuple(f"{cache}/{bundle}" for bundle in parcel.bundles)
    return json_from_job(
        Job(uuid.uuid4().hex[:12], bundles, f"{run}/{ROWS}", data, order.config, predictions=f"{run}/{PREDICTIONS}")
    )


async def _ends_early(
    connection: asyncssh.SSHClientConnection,
    device: Device,
    order: Order,
    cache: str,
    state: _State,
    moved: Callable[[str], None],
) -> bool:
    """Start the run or find it, and follow it; return whether its process was killed and it's worth another start."""
    waiting = ["--wait"] if order.wait else []
    words = [f"{cache}/{order.parcel.program}", "start", f"{cache}/runs/{order.id}", "--who", _who(), *waiting]
    async for event in events(connection, device, python_command(device, *words)):
        kind = event["event"]
        if kind == "locked":
            _refuse_unless_waiting(device, order, event)
            moved(f"waiting for {event['who']}, who measures there since {event['since']}")
        elif kind == "error":
            raise BenchError(f"{device.name}: {event['message']}")
        elif kind == "died":
            await _count_death(connection, device, f"{cache}/runs/{order.id}", event, state)
            moved("the measuring process there was killed; starting it again")
            return True
        elif kind == "done":
            return False
        elif "text" in event:
            moved(event["text"])
    raise DroppedError


async def _count_death(
    connection: asyncssh.SSHClientConnection, device: Device, run: str, event: dict[str, Any], state: _State
) -> None:
    await _fetch(connection, device, run, state)
    kept = f"{len(state.rows)} finished measurements are kept; the same command goes on from there"
    if event["free_bytes"] < _FULL_BYTES:
        raise BenchError(f"{device.name}: the disk with {run} is full; make room there. {kept}")
    state.deaths = state.deaths + 1 if len(state.rows) == state.rows_at_death else 1
    state.rows_at_death = len(state.rows)
    if state.deaths >= _DEATHS:
        said = event["log"] or "nothing, as when the system kills it for want of memory"
        raise BenchError(f"{device.name}: the measuring process died twice at the same point; its last words: {said}. {kept}")


async def _fetch(connection: asyncssh.SSHClientConnection, device: Device, run: str, state: _State) -> None:
    """Bring home the rows that are whole, and the files they name."""
    ssh = ssh_package()
    async with open_files(connection, device) as sftp:
        try:
            async with sftp.open(f"{run}/{ROWS}", "rb") as file:
                content = await file.read()
        except ssh.SFTPNoSuchFile:
            return
        assert isinstance(content, bytes)
        whole = content[: content.rfind(b"\n") + 1]
        try:
            rows = [json.loads(line) for line in whole.splitlines() if line.strip()]
            last = {row["id"]: row for row in rows}  # one is written again when its accuracy is known
            names = {Path(row["predictions"]).name for row in rows if row.get("predictions")}
            for row in rows:
                measurement_from_row(row)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise BenchError(
                f"{device.name}: {run}/{ROWS} is damaged ({err!r}); look at it there, or remove what is there with: "
                "shallowvit devices clean"
            ) from err
        state.rows = tuple(last.values())
        for name in names:
            with suppress(ssh.SFTPNoSuchFile):  # then the row comes home without
                async with sftp.open(f"{run}/{PREDICTIONS}/{name}", "rb") as file:
                    outputs = await file.read()
                assert isinstance(outputs, bytes)
                state.files[name] = outputs


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        user = "someone"
    return f"{user}@{socket.gethostname()}"


async def probe_device(device: Device, timeouts: Timeouts | None = None) -> dict[str, Any]:
    """Return what a device is and has, who measures there, and what the cache holds; facts only where nobody measures.

    Raises:
        BenchError: it can't be reached or used; says why.
    """
    try:
        async with _connection(device, timeouts or Timeouts()) as connection:
            parcel = pack([], None)
            probed = await ask(connection, device, "probe", blobs=[(blob.sha256, blob.size) for blob in parcel.blobs])
            if probed["holder"] is not None:
                return probed | {"facts": None}
            await send(connection, device, parcel, probed, lambda _: None)
            command = python_command(device, f"{probed['cache']}/{parcel.program}", "facts", probed["cache"])
            return probed | {"facts": [event async for event in events(connection, device, command)][-1]}
    except DroppedError as err:
        raise BenchError(f"{device.name}: the connection dropped; try again") from err


async def tidy_device(device: Device, action: str, timeouts: Timeouts | None = None) -> dict[str, Any]:
    """Have a device ``clean`` its cache or ``stop`` the run that is going on there, and return what it did.

    Raises:
        BenchError: it can't be reached, or refuses; says why.
    """
    try:
        async with _connection(device, timeouts or Timeouts()) as connection:
            return await ask(connection, device, action)
    except DroppedError as err:
        raise BenchError(f"{device.name}: the connection dropped; try again") from err
