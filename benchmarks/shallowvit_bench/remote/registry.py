"""Devices by name, in a TOML file of the user's; or as ``user@host:port`` on the command line.

A newcomer's trap: the host may be an alias of ``~/.ssh/config``, so what a device doesn't say (user, port, key, jump host) is
left to that file, and not filled in here.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import BenchError

__all__ = ["Device", "devices_file", "find_device", "parse_device", "read_devices", "write_devices"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^@\s\[\]:]+))(?::(?P<port>\d+))?")


@dataclass(frozen=True)
class Device:
    """How to reach a device, and what to use there.

    Args:
        name: What tables call it.
        host: A name, an address, or an alias of ``~/.ssh/config``.
        user: None: as ssh would choose.
        port: None: as ssh would choose.
        key: A private key file; None: those that ssh would try, and the agent's.
        python: The command that runs Python there; it must have numpy and a runtime.
        cache: The folder there, which ``devices clean`` empties.
        known_hosts: The file with the host's key; None: ssh's.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    key: str | None = None
    python: str = "python3"
    cache: str = "~/.cache/shallowvit"
    known_hosts: str | None = None

    @property
    def address(self) -> str:
        """As it is given on the command line."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def parse_device(text: str) -> Device:
    """Read ``[user@]host[:port]``; an IPv6 address with a port stands in brackets.

    Raises:
        BenchError: it is something else.
    """
    whole = text.rpartition("@")[2]
    if whole.count(":") > 1 and "[" not in whole:
        found = re.fullmatch(r"(?:(?P<user>[^@\s]+)@)?(?P<host>[0-9A-Fa-f:.%\w]+)", text)
        port = None
    else:
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"]) if found and found["port"] else None
    # a host that begins with - would be an option of a program further on
    if not found or text.startswith("-") or (port is not None and not 0 < port < 65536):
        raise BenchError(f"devices: {text!r} is no address; give user@host, user@host:port or user@[IPv6 address]:port")
    host = found.groupdict().get("six") or found["host"]
    return Device(name=text, host=host, user=found["user"], port=port)


def devices_file() -> Path:
    """Return the file of named devices: ``$SHALLOWVIT_DEVICES``, else in the user's configuration folder."""
    if given := os.environ.get("SHALLOWVIT_DEVICES"):
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "shallowvit" / "devices.toml"


def read_devices(path: Path) -> dict[str, Device]:
    """Read the named devices; none where there is no file.

    Raises:
        BenchError: the file isn't TOML or has entries this version doesn't know.
    """
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise BenchError(f"devices: {path} is not TOML ({err}); mend or remove it") from err
    return {name: _device_from_table(path, name, table) for name, table in tables.items()}


def _device_from_table(path: Path, name: str, table: object) -> Device:
    types = {field.name: int if field.name == "port" else str for field in fields(Device)}
    if not isinstance(table, dict) or "host" not in table:
        raise BenchError(f"devices: [{name}] of {path} has no host; mend or remove it")
    for key, value in table.items():
        if key == "name" or key not in types:
            raise BenchError(f"devices: [{name}] of {path} has an unknown entry {key}; known are {', '.join(list(types)[1:])}")
        if type(value) is not types[key]:
            raise BenchError(f"devices: {key} of [{name}] in {path} is {value!r}, expected a {types[key].__name__}")
    return Device(name=name, **table)


def write_devices(path: Path, devices: dict[str, Device]) -> None:
    """Write the named devices, whole or not at all.

    Raises:
        BenchError: a name can't be one, or the file can't be written.
    """
    for name in devices:
        if not _NAME.fullmatch(name):
            raise BenchError(f"devices: {name!r} is no name; use letters, digits, '.', '_' and '-'")
    lines: list[str] = []
    for name, device in devices.items():
        lines += [*([""] if lines else []), f'["{name}"]']
        for field in fields(Device):
            value = getattr(device, field.name)
            if field.name != "name" and (value != field.default or field.name == "host"):
                lines.append(f"{field.name} = {value if isinstance(value, int) else _quoted(value)}")
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as err:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise BenchError(f"devices: could not write {path} ({err.strerror}); give another with --file") from err


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(sign):04X}" if ord(sign) < 32 or ord(sign) == 127 else sign for sign in escaped) + '"'


def find_device(text: str, path: Path | None = None) -> Device:
    """Return the device of a name in the file, or of an address.

    Raises:
        BenchError: neither.
    """
    devices = read_devices(devices_file() if path is None else path)
    return devices[text] if text in devices else parse_device(text)
