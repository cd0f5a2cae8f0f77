import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import start_loopback
from typer.testing import CliRunner

from shallowvit.cli.devices import devices
from shallowvit_bench.errors import BenchError
from shallowvit_bench.remote.registry import Device, devices_file, find_device, parse_device, read_devices, write_devices


def run(*arguments):
    result = CliRunner().invoke(devices, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("orin", None, "orin", None),
        ("nvidia@orin.local", "nvidia", "orin.local", None),
        ("nvidia@10.0.0.7:2222", "nvidia", "10.0.0.7", 2222),
        ("::1", None, "::1", None),
        ("nvidia@fe80::1%eth0", "nvidia", "fe80::1%eth0", None),
        ("nvidia@[fe80::1%eth0]:22", "nvidia", "fe80::1%eth0", 22),
        ("[::1]", None, "::1", None),
    ],
)
def test_parse_device_reads_an_address(text, user, host, port):
    found = parse_device(text)
    assert (found.name, found.user, found.host, found.port) == (text, user, host, port)


@pytest.mark.parametrize(
    "text", ["", "a b", "user@", "@host", "host:", "host:ssh", "host:70000", "host:0", "-oProxyCommand=x", "[::1"]
)
def test_parse_device_rejects_what_is_no_address(text):
    with pytest.raises(BenchError, match=r"is no address; give user@host"):
        parse_device(text)


@given(st.text(max_size=20))
def test_parse_device_of_any_text_is_a_device_or_a_sentence(text):
    try:
        found = parse_device(text)
    except BenchError:
        return
    assert parse_device(found.address) == replace(found, name=found.address)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(key=st.none() | texts, python=texts, port=st.none() | st.integers(1, 65535))
def test_devices_come_back_as_they_were_written(tmp_path_factory, key, python, port):
    path = tmp_path_factory.mktemp("devices") / "devices.toml"
    known = {"a.b": Device("a.b", "host", port=port, key=key, python=python), "c": Device("c", "::1")}
    write_devices(path, known)
    assert read_devices(path) == known


def test_write_devices_leaves_the_old_file_where_the_new_one_can_t_be_written(tmp_path):
    path = tmp_path / "devices.toml"
    write_devices(path, {"a": Device("a", "host")})
    with pytest.raises(BenchError, match=r"is no name"):
        write_devices(path, {"a": Device("a", "other"), "b c": Device("b c", "host")})
    assert read_devices(path)["a"].host == "host"


def test_write_devices_names_a_place_it_can_t_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"could not write .*; give another with --file"):
        write_devices(tmp_path / "file" / "devices.toml", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a\n", "is not TOML"),
        ("[a]\nuser = 'x'\n", r"\[a\] of .* has no host"),
        ("[a]\nhost = 'x'\npassword = 'x'\n", "has an unknown entry password"),
        ("[a]\nhost = 'x'\nport = '22'\n", "port of .* is '22', expected a int"),
        ("[a]\nhost = 'x'\nport = true\n", "port of .* is True, expected a int"),
    ],
)
def test_read_devices_names_what_is_wrong(tmp_path, text, said):
    (tmp_path / "devices.toml").write_text(text)
    with pytest.raises(BenchError, match=said):
        read_devices(tmp_path / "devices.toml")


def test_find_device_prefers_a_name_to_an_address(tmp_path):
    path = tmp_path / "devices.toml"
    write_devices(path, {"orin": Device("orin", "10.0.0.7", "nvidia")})
    assert find_device("orin", path).host == "10.0.0.7"
    assert find_device("nano", path).host == "nano"


def test_devices_file_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("SHALLOWVIT_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert devices_file() == tmp_path / "shallowvit" / "devices.toml"
    monkeypatch.setenv("SHALLOWVIT_DEVICES", "/elsewhere.toml")
    assert str(devices_file()) == "/elsewhere.toml"


def test_devices_adds_lists_and_removes(tmp_path):
    file = ["--file", tmp_path / "devices.toml"]
    assert run("add", "orin", "nvidia@10.0.0.7:2222", "--python", "/opt/venv/bin/python", *file).stdout.startswith("added orin")
    assert run("add", "orin", "nvidia@10.0.0.8", *file).stdout.startswith("changed orin")
    (listed,) = json.loads(run("list", "--json", *file).stdout)
    assert (listed["name"], listed["host"], listed["python"]) == ("orin", "10.0.0.8", "python3")
    assert "nvidia@10.0.0.8" in run("list", *file).stdout
    assert run("remove", "orin", *file).stdout.startswith("removed orin")
    assert "no devices in" in run("list", *file).stdout


def test_devices_add_keeps_files_as_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ["--file", tmp_path / "devices.toml"]
    run("add", "orin", "nvidia@10.0.0.7", "--key", "key", "--known-hosts", "~/hosts", *file)
    (listed,) = json.loads(run("list", "--json", *file).stdout)
    assert (listed["key"], listed["known_hosts"]) == (str(tmp_path / "key"), str(Path.home() / "hosts"))


def test_devices_probe_of_a_misspelt_name_says_where_names_are(tmp_path):
    result = run("probe", "orni.invalid", "--file", tmp_path / "devices.toml")
    assert (result.exit_code, "check the address, or the name with: shallowvit devices list" in result.stderr) == (1, True)


def test_devices_remove_names_what_there_is(tmp_path):
    file = ["--file", tmp_path / "devices.toml"]
    run("add", "orin", "nvidia@10.0.0.7", *file)
    with pytest.raises(BenchError, match=r"no nano in .*; it has orin"):
        run("remove", "nano", *file)


def test_devices_probe_tells_of_each_and_fails_where_one_failed(tmp_path):
    server = start_loopback(tmp_path / "loopback")
    try:
        path = tmp_path / "devices.toml"
        write_devices(path, {"loop": server.device(), "away": replace(server.device("away"), port=1)})
        result = run("probe", "loop", "away", "--file", path)
        stopped = run("stop", "loop", "--file", path)
        cleaned = run("clean", "loop", "--file", path)
    finally:
        server.stop()
    assert result.exit_code == 1
    assert "numpy" in result.stdout
    assert "away: 127.0.0.1 refuses connections on port 1" in result.stderr
    assert stopped.stdout == "loop: nothing was measuring\n"
    assert cleaned.stdout.startswith("loop: freed ")
