"""Connect to a device over SSH as a careful ``ssh`` would: known host keys only, keys or the agent only, by ``~/.ssh/config``.

A newcomer's trap: asyncssh trusts any host where ``~/.ssh/config`` says ``UserKnownHostsFile none``; here that is refused.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BenchError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncssh

    from .registry import Device

__all__ = [
    "DroppedError",
    "Timeouts",
    "UnreachableError",
    "ask",
    "events",
    "open_connection",
    "open_files",
    "python_command",
    "ssh_package",
]

_STORE = Path(__file__).parents[1] / "device_store.py"
_OLDEST_PYTHON = (3, 10)
# Asked of any Python, so in a dialect of any: it looks at the version before it compiles what needs a newer one.
_BOOTSTRAP = """
import sys, json
if sys.version_info[:2] < {oldest}:
    print(json.dumps({{"old": "%d.%d" % sys.version_info[:2]}}))
else:
    space = {{"__name__": "device_store"}}
    exec(compile({source!r}, "device_store.py", "exec", 0, True), space)
    space["answer"]({request!r})
"""
_PLAIN = re.compile(r"[\w@%+=:,./~-]+")  # a ~ in quotes would not become the home folder
_NOT_FOUND = (126, 127)


class UnreachableError(BenchError):
    """Nobody answers there, which may pass: a device that starts again looks like this."""


class DroppedError(Exception):
    """A connection that stood is gone."""


@dataclass(frozen=True)
class Timeouts:
    """When to give up.

    Args:
        connect_s: On an answer, at first.
        keepalive_s: Between questions whether the other side is still there; after three without an answer it isn't.
        patience_s: How long a dropped connection is tried again without any progress, as when the device starts again.
    """

    connect_s: float = 15.0
    keepalive_s: float = 5.0
    patience_s: float = 180.0


def ssh_package() -> Any:
    """Import asyncssh.

    Raises:
        BenchError: it isn't installed.
    """
    try:
        import asyncssh
    except ImportError as err:
        raise BenchError("remote: asyncssh is not installed here. Run: pip install 'shallowvit[remote]'") from err
    # asyncio warns of every write to a connection that is gone; that it is gone is told once, by us
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    return asyncssh


async def open_connection(device: Device, timeouts: Timeouts) -> asyncssh.SSHClientConnection:
    """Connect to a device.

    Raises:
        UnreachableError: nobody answers.
        BenchError: the host key isn't known or is another, or no key is let in; says what to do.
    """
    ssh = ssh_package()
    options = await _options(ssh, device, timeouts)
    known = _known_hosts(ssh, device, options)
    where = f"{device.name}: "
    try:
        connection: asyncssh.SSHClientConnection = await ssh.connect(device.host, options=options, known_hosts=known)
    except ssh.HostKeyNotVerifiable as err:
        raise BenchError(where + await _host_key_sentence(ssh, device, options, known)) from err
    except ssh.PermissionDenied as err:
        option = f"-i {shlex.quote(device.key)} " if device.key else ""
        tried = f"the key {device.key} and those of the agent" if device.key else "your keys and those of the agent"
        raise BenchError(
            f"{where}{options.username}@{options.host} lets in none of {tried}; copy one there with: "
            f"ssh-copy-id {option}{_ssh_words(device)}. Or name another with: shallowvit devices add --key"
        ) from err
    except TimeoutError as err:
        raise UnreachableError(
            f"{where}no answer from {options.host} port {options.port} within {timeouts.connect_s:g} s; is it on, and on this "
            "network?"
        ) from err
    except ConnectionRefusedError as err:
        raise UnreachableError(
            f"{where}{options.host} refuses connections on port {options.port}; is its SSH server running, and on this port?"
        ) from err
    except (ssh.DisconnectError, EOFError) as err:
        raise UnreachableError(f"{where}{options.host} closed the connection before the login ({err}); try again") from err
    except OSError as err:
        said = err.strerror or str(err)
        # a name that nobody gave a device is taken for an address
        hint = "" if device.user or device.name != device.host else ", or the name with: shallowvit devices list"
        raise UnreachableError(
            f"{where}{options.host} port {options.port} can't be reached ({said}); check the address{hint}"
        ) from err
    return connection


async def _options(ssh: Any, device: Device, timeouts: Timeouts) -> Any:
    """What the device says, then ``~/.ssh/config``, then ssh's defaults; never a password."""
    given = {
        "port": device.port,
        "username": device.user,
        "client_keys": [str(Path(device.key).expanduser())] if device.key else None,
    }
    try:
        return await ssh.SSHClientConnectionOptions.construct(
            host=device.host,
            config=(),  # the default: ~/.ssh/config
            **{name: value for name, value in given.items() if value is not None},
            password=None,
            preferred_auth="publickey",
            agent_forwarding=False,
            connect_timeout=timeouts.connect_s,
            login_timeout=timeouts.connect_s,
            keepalive_interval=timeouts.keepalive_s,
            keepalive_count_max=3,
        )
    except FileNotFoundError as err:
        raise BenchError(f"{device.name}: no key file {err.filename}; name another with: shallowvit devices add --key") from err
    except ssh.KeyImportError as err:
        raise BenchError(
            f"{device.name}: the key {device.key} can't be read ({err}); if it has a passphrase, load it with: "
            f"ssh-add {device.key}, and name no key"
        ) from err
    except ssh.ConfigParseError as err:
        raise BenchError(f"{device.name}: ~/.ssh/config can't be read ({err}); mend it") from err


def _known_hosts(ssh: Any, device: Device, options: Any) -> Any:
    """The host keys that are trusted: of the device's file, of the files that ssh's configuration names, or of ssh's own."""
    if device.known_hosts:
        files = [Path(device.known_hosts)]
    elif options.known_hosts is None:
        raise BenchError(
            f"{device.name}: ~/.ssh/config trusts any host key there (UserKnownHostsFile none), so a figure could come from "
            "any machine; remove that line"
        )
    else:
        files = [Path(file) for file in options.known_hosts or ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")]
    present = [str(file.expanduser()) for file in files if file.expanduser().is_file()]
    try:
        return ssh.read_known_hosts(present) if present else ssh.import_known_hosts("")
    except ValueError as err:
        raise BenchError(f"{device.name}: {', '.join(present)} can't be read as known hosts ({err}); mend it") from err


async def _host_key_sentence(ssh: Any, device: Device, options: Any, known: Any) -> str:
    """Unknown and changed keys are different things to a user, and one to asyncssh."""
    host = options.host_key_alias or options.host
    port = None if options.port == 22 else options.port
    trusted = ssh.match_known_hosts(known, host, "", port)[0]
    try:
        key = await ssh.get_server_host_key(device.host, options=options)
    except (OSError, ssh.Error):
        key = None
    print_ = f" ({key.get_algorithm()} {key.get_fingerprint()})" if key else ""
    if trusted:
        entry = f"[{host}]:{port}" if port else host
        return (
            f"the host key of {host} has changed{print_}: another machine may answer there. If you know why, remove the old "
            f"one with: ssh-keygen -R {shlex.quote(entry)}"
            + (f" -f {shlex.quote(device.known_hosts)}" if device.known_hosts else "")
        )
    option = f" -o UserKnownHostsFile={shlex.quote(device.known_hosts)}" if device.known_hosts else ""
    return (
        f"the host key of {host} is not known{print_}; compare it with the device's own, then accept it with: "
        f"ssh{option} {_ssh_words(device)}"
    )


def _ssh_words(device: Device) -> str:
    user = f"{device.user}@" if device.user else ""
    return (f"-p {device.port} " if device.port else "") + shlex.quote(f"{user}{device.host}")


def python_command(device: Device, *words: str) -> str:
    """Return a command line for the device's shell that runs its Python."""
    every = [*shlex.split(device.python), *words]
    return " ".join(word if _PLAIN.fullmatch(word) else shlex.quote(word) for word in every)


async def ask(connection: asyncssh.SSHClientConnection, device: Device, action: str, **request: Any) -> dict[str, Any]:
    """Have ``device_store`` do something on the device, which needs nothing there but Python.

    Raises:
        BenchError: there is no Python, an old one, or it refused; says what to do.
        DroppedError: the connection is gone.
    """
    text = json.dumps(request | {"action": action, "cache": device.cache})
    script = _BOOTSTRAP.format(oldest=_OLDEST_PYTHON, source=_STORE.read_text(encoding="utf-8"), request=text)
    done = await connection.run(python_command(device, "-"), input=script, check=False)
    if done.exit_status is None:
        raise DroppedError
    if done.exit_status in _NOT_FOUND:
        raise BenchError(
            f"{device.name}: no {device.python} there ({_last(str(done.stderr))}); name its Python with: "
            "shallowvit devices add --python"
        )
    records = [record for line in str(done.stdout).splitlines() if (record := _record(line)) is not None]
    reply = records[-1] if records else None
    if reply is None:
        said = _last(str(done.stderr)) or "it said nothing"
        raise BenchError(f"{device.name}: {device.python} could not {action} there: {said}")
    if "old" in reply:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        raise BenchError(
            f"{device.name}: {device.python} is Python {reply['old']} there, the harness needs {oldest} (JetPack 6 has it); "
            "name another with: shallowvit devices add --python"
        )
    if "error" in reply:
        raise BenchError(f"{device.name}: could not {action} in {device.cache}: {reply['error']}")
    return reply


@asynccontextmanager
async def open_files(connection: asyncssh.SSHClientConnection, device: Device) -> AsyncIterator[asyncssh.SFTPClient]:
    """Open SFTP over a connection.

    Raises:
        BenchError: the device has none.
    """
    ssh = ssh_package()
    try:
        client = await connection.start_sftp_client()
    except ssh.SFTPBadMessage as err:
        raise BenchError(
            f"{device.name}: its shell prints something at every login, which breaks SFTP; keep it silent there for commands "
            "(in ~/.bashrc, behind a line that returns when it is not interactive)"
        ) from err
    async with client:
        yield client


async def events(connection: asyncssh.SSHClientConnection, device: Device, command: str) -> AsyncIterator[dict[str, Any]]:
    """Run a command of the harness there and yield its events; what else is printed there is none.

    Raises:
        BenchError: it ended without an event, as without numpy.
        DroppedError: the connection is gone.
    """
    async with connection.create_process(command, stdin=None) as process:
        process.stdin.write_eof()
        told = False
        async for line in process.stdout:
            event = _record(line)
            if event and "event" in event:
                told = True
                yield event
        said = _last(await process.stderr.read())
        await process.wait_closed()
        if process.exit_status is None:
            raise DroppedError
        if not told:
            raise BenchError(f"{device.name}: the harness did not start there: {said or 'it said nothing'}{_advice(said)}")


def _advice(said: str) -> str:
    if found := re.search(r"No module named '?(\w+)", said):
        return f"; install {found[1]} for the device's Python, or name another with: shallowvit devices add --python"
    return ""


def _record(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
