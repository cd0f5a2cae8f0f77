import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
from loopback import Proxy
from tiny_bundles import write_bundle

import shallowvit_bench
from shallowvit_bench.errors import BenchError
from shallowvit_bench.remote.bench import probe_device
from shallowvit_bench.remote.connection import Timeouts, ask, open_connection
from shallowvit_bench.remote.registry import parse_device
from shallowvit_bench.remote.transfer import harness_bytes, pack, send

HASTY = Timeouts(connect_s=3, keepalive_s=1, patience_s=5)


@pytest.fixture
def device(server, tmp_path):
    """The server with a cache of this test's own."""
    return server.device(cache=str(tmp_path / "cache"))


def transfer(device, parcel, told=lambda _: None):
    """Send over a connection of its own and return how many bytes went."""

    async def run():
        async with await open_connection(device, HASTY) as connection:
            probed = await ask(connection, device, "probe", blobs=[(blob.sha256, blob.size) for blob in parcel.blobs])
            return await send(connection, device, parcel, probed, told)

    return asyncio.run(run())


def refusal(device):
    """Why a device can't be used."""
    with pytest.raises(BenchError) as caught:
        asyncio.run(probe_device(device, HASTY))
    return str(caught.value)


def blob_of(bundle, name="model.onnx"):
    return next(blob for blob in pack([bundle], None).blobs if blob.path and blob.path.name == name)


# --- what is packed


def test_harness_bytes_are_the_same_for_the_same_files():
    assert harness_bytes() == harness_bytes()


def test_harness_leaves_at_home_what_stays_at_home():
    names = zipfile.ZipFile(io.BytesIO(harness_bytes())).namelist()
    assert {"__main__.py", "shallowvit_bench/device.py", "shallowvit_bench/data/digits.npz"} <= set(names)
    assert [name for name in names if "/remote/" in name or "__pycache__" in name] == []


def test_harness_is_whole_where_a_folder_above_is_called_remote(tmp_path, monkeypatch):
    names = zipfile.ZipFile(io.BytesIO(harness_bytes())).namelist()
    shutil.copytree(Path(shallowvit_bench.__file__).parent, tmp_path / "remote" / "shallowvit_bench")
    monkeypatch.setattr("shallowvit_bench.remote.transfer._PACKAGE", tmp_path / "remote" / "shallowvit_bench")
    assert zipfile.ZipFile(io.BytesIO(harness_bytes())).namelist() == names


def test_harness_runs_from_its_zip_file_alone(tmp_path):
    (tmp_path / "harness.pyz").write_bytes(harness_bytes())
    script = "import shallowvit_bench.demo_clips as demo; print(demo.__file__); print(len(demo.demo_clips('test', 3).frames))"
    environment = {"PYTHONPATH": str(tmp_path / "harness.pyz"), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [str(tmp_path / "harness.pyz/shallowvit_bench/demo_clips.py"), "3"]


def test_pack_gives_the_same_folder_for_the_same_content(bundle, tmp_path):
    first = pack([bundle], None).bundles
    (bundle / "model.onnx").touch()
    assert pack([bundle], None).bundles == first
    (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text() + " ")
    assert pack([bundle], None).bundles != first


def test_pack_leaves_data_of_the_device_to_the_device(bundle):
    parcel = pack([bundle], "device:kinetics:/data/val.csv?root=/data")
    assert parcel.data == "kinetics:/data/val.csv?root=/data"


def test_pack_leaves_the_demo_data_to_the_harness(bundle):
    assert pack([bundle], "demo").data == "demo"


@pytest.mark.parametrize("form", ["", "images:", "binary:images:"])
def test_pack_puts_the_place_on_the_device_into_the_specification(bundle, tmp_path, form):
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(b"a cat")
    parcel = pack([bundle], f"{form}{tmp_path / 'pictures'}")
    folder = next(folder for folder in parcel.trees if folder.startswith("data/"))
    assert parcel.data == f"{form}<cache>/{folder}/pictures"
    assert list(parcel.trees[folder]) == ["pictures/cat/1.png"]


def test_pack_sends_a_folder_that_is_called_as_its_form(bundle, tmp_path, monkeypatch):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "a.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"images:<cache>/data/\w+/images", pack([bundle], "images:images").data)


def test_pack_rejects_a_link_to_a_folder(bundle, tmp_path):
    for name in ("cats", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "cats")
    with pytest.raises(BenchError, match=r"data/cat is a link to a folder, which isn't sent; .* device:PATH-THERE"):
        pack([bundle], str(tmp_path / "data"))


def test_pack_rejects_data_whose_files_lie_elsewhere(bundle, tmp_path):
    (tmp_path / "list").mkdir()
    (tmp_path / "names.txt").write_text("cat")
    with pytest.raises(BenchError, match=r"names files beside it, which aren't sent; .* device:images:PATH-THERE"):
        pack([bundle], f"images:{tmp_path / 'list'}?classes={tmp_path / 'names.txt'}")


# --- what is sent


def test_send_sends_nothing_twice(device, bundle):
    parcel = pack([bundle], None)
    assert transfer(device, parcel) == sum(blob.size for blob in parcel.blobs)
    assert transfer(device, parcel) == 0


def test_send_sends_what_two_bundles_share_once(device, bundle, tmp_path):
    transfer(device, pack([bundle], None))
    twin = write_bundle(tmp_path / "twin")  # the same graph, another manifest
    assert transfer(device, pack([twin], None)) == (twin / "manifest.json").stat().st_size


def test_send_puts_the_bundle_together(device, bundle, tmp_path):
    parcel = pack([bundle], None)
    transfer(device, parcel)
    there = tmp_path / "cache" / parcel.bundles[0]
    assert {file.name: file.read_bytes() for file in there.iterdir()} == {
        file.name: file.read_bytes() for file in bundle.iterdir()
    }


def test_send_goes_on_with_a_file_that_was_cut_off(server, device, tmp_path):
    big = write_bundle(tmp_path / "big", labels=[str(number) for number in range(400)])
    size = (big / "model.onnx").stat().st_size
    proxy = Proxy(server, cuts=[size // 2])
    try:
        with pytest.raises((asyncssh.Error, ConnectionError)):
            transfer(replace(device, port=proxy.port), pack([big], None))
        assert 0 < transfer(replace(device, port=proxy.port), pack([big], None)) < size * 0.8
    finally:
        proxy.stop()
    assert (tmp_path / "cache" / "blobs" / blob_of(big).sha256).read_bytes() == (big / "model.onnx").read_bytes()


def test_send_notices_a_damaged_partial_file(device, bundle, tmp_path):
    blob = blob_of(bundle)
    (tmp_path / "cache" / "blobs").mkdir(parents=True)
    (tmp_path / "cache" / "blobs" / f"{blob.sha256}.partial").write_bytes(b"\1" * (blob.size // 2))
    told = []
    transfer(device, pack([bundle], None), told.append)
    assert "1 files came damaged; sending again" in told
    assert (tmp_path / "cache" / "blobs" / blob.sha256).read_bytes() == (bundle / "model.onnx").read_bytes()


def test_send_notices_a_damaged_file_in_the_cache_and_links_the_whole_one(device, bundle, tmp_path):
    parcel = pack([bundle], None)
    transfer(device, parcel)
    blob = tmp_path / "cache" / "blobs" / blob_of(bundle).sha256
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"damaged")
    assert transfer(device, parcel) == blob.stat().st_size
    there = tmp_path / "cache" / parcel.bundles[0] / "model.onnx"
    assert there.read_bytes() == (bundle / "model.onnx").read_bytes()


def test_send_rejects_a_disk_with_too_little_room(device, bundle, tmp_path):
    huge = replace(blob_of(bundle), size=1 << 60)
    parcel = replace(pack([bundle], None), blobs=(huge,))
    with pytest.raises(BenchError, match=r"MiB free, .* MiB are needed; make room"):
        transfer(device, parcel)


def test_send_tells_of_a_disk_that_fills_and_goes_on_when_there_is_room(server, device, tmp_path):
    """A limit on the size of files stands for the disk: it fails with the same answer over SFTP."""
    big = write_bundle(tmp_path / "big", labels=[str(number) for number in range(400)])
    server.limit("trap '' XFSZ; ulimit -f 4000")  # blocks of 512 bytes
    try:
        with pytest.raises(BenchError, match=r"writing to .* failed .* make room and run the same command again"):
            transfer(device, pack([big], None))
    finally:
        server.limit("")
    assert 0 < transfer(device, pack([big], None)) < (big / "model.onnx").stat().st_size


# --- who is trusted, and what is missing there


def test_probe_tells_what_the_device_has(device):
    found = asyncio.run(probe_device(device, HASTY))
    assert found["facts"]["runtimes"]["numpy"]
    assert found["facts"]["memory_mib"] > 0
    assert found["facts"]["conditions"]["cores"] >= 1
    assert (found["holder"], found["runs"]) == (None, [])


def test_an_unknown_host_key_is_refused_with_its_fingerprint(server, device, tmp_path):
    (tmp_path / "known").write_text("")
    said = refusal(replace(device, known_hosts=str(tmp_path / "known")))
    listed = subprocess.run(["ssh-keygen", "-lf", server.folder / "host_key.pub"], capture_output=True, text=True, check=True)
    assert "the host key of 127.0.0.1 is not known" in said
    assert listed.stdout.split()[1] in said
    assert f"ssh -o UserKnownHostsFile={tmp_path / 'known'} -p {server.port}" in said


def test_a_changed_host_key_is_refused(server, device, tmp_path):
    other = (server.folder / "user_key.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {other}")
    said = refusal(replace(device, known_hosts=str(tmp_path / "known")))
    assert "the host key of 127.0.0.1 has changed" in said
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {tmp_path / 'known'}" in said


def test_a_configuration_that_trusts_anyone_is_refused(server, device, tmp_path, monkeypatch):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  UserKnownHostsFile none\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "trusts any host key" in refusal(replace(device, known_hosts=None))


def test_an_alias_of_the_ssh_configuration_is_found(server, tmp_path, monkeypatch):
    (tmp_path / ".ssh").mkdir()
    whole = server.device()
    (tmp_path / ".ssh" / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  User {whole.user}\n  IdentityFile {whole.key}\n"
        f"  UserKnownHostsFile {whole.known_hosts}\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    board = replace(parse_device("board"), cache=str(tmp_path / "cache"))
    assert asyncio.run(probe_device(board, HASTY))["cache"] == str(tmp_path / "cache")


def test_a_key_that_is_not_let_in_is_named(server, device, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"], check=True)
    said = refusal(replace(device, key=str(tmp_path / "stranger")))
    assert f"lets in none of the key {tmp_path / 'stranger'}" in said
    assert f"ssh-copy-id -i {tmp_path / 'stranger'} -p {server.port}" in said


def test_a_key_with_a_passphrase_is_sent_to_the_agent(device, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "locked"], check=True)
    assert f"ssh-add {tmp_path / 'locked'}" in refusal(replace(device, key=str(tmp_path / "locked")))


def test_a_missing_key_file_is_named(device):
    assert "no key file /nowhere/key" in refusal(replace(device, key="/nowhere/key"))


def test_a_closed_port_is_named(device):
    assert "127.0.0.1 refuses connections on port 1" in refusal(replace(device, port=1))


def test_an_unknown_host_is_named(device):
    assert "no-such-host.invalid port" in refusal(replace(device, host="no-such-host.invalid"))


def test_a_missing_python_is_named(device):
    assert "no /opt/none/python3 there" in refusal(replace(device, python="/opt/none/python3"))


def test_a_python_that_is_too_old_is_named(server, device):
    server.set_python(
        "#!/bin/sh\nexec " + sys.executable + ' -c "import sys; sys.version_info = (3, 8, 10); exec(sys.stdin.read())"\n'
    )
    try:
        assert "is Python 3.8 there, the harness needs 3.10" in refusal(device)
    finally:
        server.set_python()


def test_a_python_without_numpy_is_named(server, device, tmp_path, bundle):
    from shallowvit_bench.config import BenchConfig
    from shallowvit_bench.remote.bench import remote_bench

    server.set_python(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: without site-packages
    try:
        said = remote_bench([device], [bundle], BenchConfig(max_runs=2), timeouts=HASTY)[0].failure
    finally:
        server.set_python()
    assert "numpy is not installed for" in said


def test_noise_of_the_shell_is_no_answer(server, device):
    server.set_python("#!/bin/sh\necho hello\necho '{\"welcome\": 1}'\nexec " + sys.executable + ' "$@"\n')
    try:
        assert asyncio.run(probe_device(device, HASTY))["facts"]["runtimes"]["numpy"]
    finally:
        server.set_python()


def test_noise_of_the_shell_that_breaks_sftp_is_named(server, device):
    server.limit("echo hello")
    try:
        assert "its shell prints something at every login" in refusal(device)
    finally:
        server.limit("")


def test_a_home_folder_is_the_device_s_own(server, device):
    found = asyncio.run(probe_device(replace(device, cache="~/kept here"), HASTY))
    assert found["cache"] == str(server.home / "kept here")
