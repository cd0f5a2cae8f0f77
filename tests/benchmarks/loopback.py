"""A real SSH server on the loopback interface, as a device with a home, a temporary folder and a Python of its own.

Everything of it lives in one folder: host key, user key, known hosts, home. Its environment is empty but for HOME, PATH and
TMPDIR, so nothing of the machine's user leaks in. ``Proxy`` stands before it to cut connections.
"""

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from shallowvit_bench.remote.registry import Device

SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AcceptEnv none
PermitUserEnvironment no
MaxStartups 50
Subsystem sftp internal-sftp
ForceCommand {folder}/shell
"""

# internal-sftp is run by ForceCommand like any other command, so it is looked for among sshd's own programs.
SHELL = """#!/bin/sh
{limits}
case "$SSH_ORIGINAL_COMMAND" in
internal-sftp|"") exec {sftp} ;;
esac
exec env -i HOME={folder}/home TMPDIR={folder}/tmp PATH={folder}/bin:/usr/bin:/bin sh -c "$SSH_ORIGINAL_COMMAND"
"""
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


@dataclass
class Loopback:
    """A running server."""

    folder: Path
    port: int
    process: subprocess.Popen

    @property
    def home(self):
        return self.folder / "home"

    @property
    def cache(self):
        return self.home / ".cache" / "shallowvit"

    def device(self, name="loop", **changes):
        settings = {"port": self.port, "known_hosts": str(self.folder / "known_hosts"), "key": str(self.folder / "user_key")}
        return Device(name=name, host="127.0.0.1", user=pwd.getpwuid(os.getuid()).pw_name, **(settings | changes))

    def set_python(self, text=f'#!/bin/sh\nexec {sys.executable} "$@"\n'):
        """Write the device's ``python3``, by default one that is this interpreter."""
        file = self.folder / "bin" / "python3"
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def limit(self, limits):
        """Write the shell that every command goes through, with ``ulimit`` and the like before it."""
        sftp = next(filter(os.path.exists, SFTP_SERVERS))
        (self.folder / "shell").write_text(SHELL.format(folder=self.folder, sftp=sftp, limits=limits))
        (self.folder / "shell").chmod(0o755)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


def start_loopback(folder):
    """Start a server whose device has this interpreter as its ``python3``; skip the test where there is no sshd."""
    if SSHD is None or not any(map(os.path.exists, SFTP_SERVERS)):
        pytest.skip("no sshd here; run: apt-get install openssh-server")
    for name in ("home", "tmp", "bin"):
        (folder / name).mkdir(parents=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, started by root, separates its privileges
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "sshd_config").write_text(CONFIG.format(port=port, folder=folder))
    know(folder, port)
    log = (folder / "sshd.log").open("w")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL)
    server = Loopback(folder, port, process)
    server.limit("")
    server.set_python()
    wait_for_port(port, process, folder / "sshd.log")
    if os.getuid() != 0:
        skip_unless_let_in(server)
    return server


def skip_unless_let_in(server):
    """sshd without root lets in only the account it runs under, and not where that one's password is locked."""
    device = server.device()
    options = [
        "-i",
        device.key,
        "-p",
        str(device.port),
        "-o",
        f"UserKnownHostsFile={device.known_hosts}",
        "-o",
        "BatchMode=yes",
    ]
    command = ["ssh", "-F", "none", *options, f"{device.user}@{device.host}", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        server.stop()
        pytest.skip(f"sshd lets this account not in ({done.stderr.strip().splitlines()[-1]}); run as another, or as root")


def know(folder, port):
    """Add the server's key, as found at this port, to the known hosts."""
    key = (folder / "host_key.pub").read_text().strip()
    with (folder / "known_hosts").open("a") as file:
        file.write(f"[127.0.0.1]:{port} {key}\n")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for_port(port, process, log):
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(log.read_text())


class Proxy:
    """Passes bytes on to a server from a port of its own, and cuts the connection when told, or after some bytes."""

    def __init__(self, server, cuts=()):
        self.port = free_port()
        self.connections = 0
        self._target = server.port
        self._cuts = list(cuts)  # bytes towards the server after which the first, second, ... connection is cut
        self._open = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        know(server.folder, self.port)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()

    async def _accept(self, reader, writer):
        limit = self._cuts[self.connections] if self.connections < len(self._cuts) else None
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open += [writer, back]
        await asyncio.gather(self._pump(reader, back, limit), self._pump(there, writer, None))

    async def _pump(self, reader, writer, limit):
        passed = 0
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                passed += len(block)
                if limit is not None and passed > limit:
                    self._abort()
                    break
                writer.write(block)
                await writer.drain()
        writer.close()

    def _abort(self):
        for writer in self._open:
            writer.transport.abort()
        self._open = []

    def cut(self):
        """Cut what is open now."""
        self._loop.call_soon_threadsafe(self._abort)

    def stop(self):
        """Cut what is open and take no more."""

        def end():
            self._server.close()
            self._abort()
            self._loop.call_soon(self._loop.stop)

        self._loop.call_soon_threadsafe(end)
        self._thread.join(5)
