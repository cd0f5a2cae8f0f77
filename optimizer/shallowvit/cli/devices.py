"""``shallowvit devices``: the devices that ``bench --device`` knows by name, what they have, and what is going on there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from shallowvit_bench.remote.registry import Device

__all__ = ["devices"]

devices = typer.Typer(
    help="Name devices to measure on over SSH, look what they have, stop or clean what is there.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

File = Annotated[
    Path | None,
    typer.Option(help="The file of devices.  [default: $SHALLOWVIT_DEVICES or ~/.config/shallowvit/devices.toml]"),
]
Names = Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Names from the file, or user@host[:port].")]


@devices.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    address: Annotated[str, typer.Argument(help="user@host[:port], user@[IPv6]:port, or an alias of ~/.ssh/config.")],
    key: Annotated[str | None, typer.Option(help="A private key file.  [default: as ssh chooses]")] = None,
    python: Annotated[str | None, typer.Option(help="The command of Python there.  [default: python3]")] = None,
    cache: Annotated[str | None, typer.Option(help="The folder used there.  [default: ~/.cache/shallowvit]")] = None,
    known_hosts: Annotated[str | None, typer.Option(help="The file with its host key.  [default: ssh's]")] = None,
    file: File = None,
) -> None:
    """Name a device, or describe a named one anew."""
    from dataclasses import replace

    from shallowvit_bench.remote.registry import Device, parse_device, read_devices, write_devices

    path = _path(file)
    known = read_devices(path)
    device = replace(
        parse_device(address),
        name=name,
        key=_absolute(key),
        known_hosts=_absolute(known_hosts),
        python=Device.python if python is None else python,
        cache=Device.cache if cache is None else cache,
    )
    write_devices(path, known | {name: device})
    typer.echo(f"{'changed' if name in known else 'added'} {name} in {path}; look at it with: shallowvit devices probe {name}")


def _absolute(file: str | None) -> str | None:
    """A file as it is found from any folder, since the device is called from others."""
    return None if file is None else str(Path(file).expanduser().absolute())


@devices.command("list")
def list_(json: Json = False, file: File = None) -> None:
    """List the named devices."""
    from shallowvit_bench.remote.registry import read_devices

    from . import printing

    known = read_devices(_path(file))
    if json:
        printing.print_json([asdict(device) for device in known.values()])
        return
    if not known:
        typer.echo(f"no devices in {_path(file)}; name one with: shallowvit devices add NAME user@host")
    for device in known.values():
        details = [f"python {device.python}", f"cache {device.cache}", *([f"key {device.key}"] if device.key else [])]
        typer.echo(f"{device.name:<16} {device.address:<28} {', '.join(details)}")


@devices.command()
def remove(name: Annotated[str, typer.Argument(help="Its name.")], file: File = None) -> None:
    """Forget a named device; what is on it stays (see clean)."""
    from shallowvit_bench.errors import BenchError
    from shallowvit_bench.remote.registry import read_devices, write_devices

    known = read_devices(_path(file))
    if name not in known:
        raise BenchError(f"devices: no {name} in {_path(file)}; it has {', '.join(known) or 'none'}")
    write_devices(_path(file), {other: device for other, device in known.items() if other != name})
    typer.echo(f"removed {name} from {_path(file)}")


@devices.command(short_help="Say what devices are and have, and who measures there.")
def probe(names: Names, json: Json = False, file: File = None) -> None:
    """Say what devices are and have, who measures there, and which rows wait to be brought home.

    Exits with 1 where one can't be reached or used.
    """
    from shallowvit_bench.remote.bench import probe_device

    from . import printing

    found = _each(names, file, probe_device)
    if json:
        printing.print_json(
            {device.name: answer if isinstance(answer, dict) else {"error": str(answer)} for device, answer in found}
        )
    else:
        for device, answer in found:
            _print_probe(device, answer)
    _fail_if_any(found)


@devices.command(short_help="Stop what is measuring there from your cache.")
def stop(names: Names, file: File = None) -> None:
    """Stop what is measuring there from your cache; finished measurements stay for the next call of the same bench."""
    from shallowvit_bench.remote.bench import tidy_device

    found = _each(names, file, lambda device: tidy_device(device, "stop"))
    for device, answer in found:
        if isinstance(answer, dict):
            stopped = answer["stopped"]
            said = f"stopped the run of {stopped['who']} since {stopped['since']}" if stopped else "nothing was measuring"
            typer.echo(f"{device.name}: {said}")
    _fail_if_any(found)


@devices.command(short_help="Remove all that shallowvit keeps on devices.")
def clean(names: Names, file: File = None) -> None:
    """Remove all that shallowvit keeps on devices, rows that were never brought home too."""
    from shallowvit_bench.remote.bench import tidy_device

    found = _each(names, file, lambda device: tidy_device(device, "clean"))
    for device, answer in found:
        if isinstance(answer, dict):
            runs = f", {answer['runs']} runs whose rows were not home" if answer["runs"] else ""
            typer.echo(f"{device.name}: freed {answer['freed_bytes'] / 2**20:.1f} MiB{runs}")
    _fail_if_any(found)


def _path(file: Path | None) -> Path:
    from shallowvit_bench.remote.registry import devices_file

    return devices_file() if file is None else file


def _each(
    names: list[str], file: Path | None, step: Callable[[Device], Coroutine[Any, Any, dict[str, Any]]]
) -> list[tuple[Device, dict[str, Any] | Exception]]:
    """Do something with all devices at once; one that fails has its error in place of the answer."""
    import asyncio

    from shallowvit_bench.errors import BenchError
    from shallowvit_bench.remote.registry import find_device

    found = [find_device(name, file) for name in names]

    async def one(device: Device) -> dict[str, Any] | Exception:
        try:
            return await step(device)
        except BenchError as err:
            return err

    async def every() -> list[dict[str, Any] | Exception]:
        return list(await asyncio.gather(*map(one, found)))

    return list(zip(found, asyncio.run(every()), strict=True))


def _fail_if_any(found: list[tuple[Device, dict[str, Any] | Exception]]) -> None:
    failed = [answer for _, answer in found if isinstance(answer, Exception)]
    for answer in failed:
        typer.echo(f"shallowvit: {answer}", err=True)
    if failed:
        raise typer.Exit(1)


def _print_probe(device: Device, answer: dict[str, Any] | Exception) -> None:
    if isinstance(answer, Exception):
        return
    typer.echo(f"{device.name} ({device.address})")
    lines = {"python": f"{device.python} {answer['python']}", "disk free": f"{answer['free_bytes'] / 2**30:.1f} GiB"}
    lines["cache"] = answer["cache"]
    if facts := answer["facts"]:
        lines = _fact_lines(facts) | lines
    if holder := answer["holder"]:
        lines["measuring"] = f"{holder['who']} since {holder['since']}; the rest is not looked at, which would disturb it"
    for run in answer["runs"]:
        lines[f"run {run['id'][:8]}"] = f"{run['state']}, {run['rows']} rows; the bench that began it brings them home"
    for title, text in lines.items():
        typer.echo(f"  {title:<14} {text}")


def _fact_lines(facts: dict[str, Any]) -> dict[str, str]:
    """What can't be read is said, never left out: a power mode that isn't known makes a figure hard to repeat."""
    conditions = facts["conditions"]
    memory = facts["memory_mib"]
    locked = {True: "locked", False: "not locked", None: None}[conditions["clocks_locked"]]
    found = {
        "device": conditions["board"] or conditions["device"],
        "machine": f"{facts['machine']}, {conditions['cores']} cores, {conditions['os']}",
        "JetPack": conditions["jetpack"] and f"{conditions['jetpack']} (L4T {conditions['l4t']})",
        "GPU": conditions["gpu"],
        "power mode": conditions["power_mode"],
        "clocks": locked,
        "memory": memory and f"{facts['memory_available_mib'] / 1024:.1f} of {memory / 1024:.1f} GiB free",
        "runtimes": ", ".join(f"{name} {version}" for name, version in facts["runtimes"].items()),
        "providers": ", ".join(facts["providers"]),
    }
    return {title: text or "not known" for title, text in found.items()}
