import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loopback import Proxy, start_loopback

from shallowvit_bench.config import BenchConfig
from shallowvit_bench.device_store import open_lock
from shallowvit_bench.errors import BenchError
from shallowvit_bench.remote.bench import Order, remote_bench, tidy_device
from shallowvit_bench.remote.connection import Timeouts
from shallowvit_bench.remote.transfer import pack

QUICK = BenchConfig(max_runs=4, threads=1, provider="cpu", power=False)
LONG = replace(QUICK, batches=(1, 2, 3, 4), max_runs=40)
HASTY = Timeouts(connect_s=5, keepalive_s=1, patience_s=20)


@pytest.fixture
def device(server, tmp_path):
    """The server with a cache of this test's own."""
    return server.device(cache=str(tmp_path / "cache"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def measure(device, bundle, config=QUICK, **options):
    """Measure on one device and return its result."""
    return remote_bench([device], [bundle], config, **({"timeouts": HASTY} | options))[0]


def pid_of_the_run(server):
    return json.loads((server.folder / "tmp" / "shallowvit-bench.lock").read_text())["pid"]


def started(cache):
    """Return the folder of the one run once its process has measured something."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if found := list(cache.glob("runs/*/rows.jsonl")):
            return found[0].parent
        time.sleep(0.02)
    raise AssertionError("no row within 30 s")


def test_remote_bench_brings_rows_home_and_leaves_no_run(device, bundle, cache):
    result = measure(device, bundle, replace(QUICK, batches=(1, 2)))
    assert result.failure is None
    assert [(row["side"], row["batch"], row["status"]) for row in result.rows] == [("tiny", 1, "ok"), ("tiny", 2, "ok")]
    assert list((cache / "runs").iterdir()) == []


def test_remote_bench_measures_accuracy_on_data_that_was_sent(device, bundle, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "clips.npz", frames=frames, labels=np.arange(6))
    result = measure(device, bundle, data=str(tmp_path / "clips.npz"))
    assert result.failure is None
    assert (result.rows[0]["data"], result.rows[0]["items"]) == ("clips.npz", 6)
    assert b"model_sha256" in result.files[Path(result.rows[0]["predictions"]).name]


def test_remote_bench_keeps_rows_before_the_run_is_removed(device, bundle, cache):
    kept = []
    measure(device, bundle, keep=lambda result: kept.append((result.rows, len(list((cache / "runs").iterdir())))))
    assert [(len(rows), runs) for rows, runs in kept] == [(1, 1)]


def test_rows_that_could_not_be_kept_stay_on_the_device(device, bundle):
    def refuse(result):
        raise BenchError("the disk at home is full")

    failed, again = measure(device, bundle, keep=refuse), measure(device, bundle)
    assert failed.failure == "the disk at home is full"
    assert again.picked_up
    assert again.rows == failed.rows


def test_a_run_after_a_finished_one_is_a_new_one(device, bundle):
    ids = [measure(device, bundle).rows[0]["id"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_remote_bench_takes_data_that_is_on_the_device(device, bundle, tmp_path):
    frames = np.zeros((5, 8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "there.npz", frames=frames, labels=np.arange(5))
    result = measure(device, bundle, data=f"device:{tmp_path / 'there.npz'}")
    assert result.rows[0]["items"] == 5


def test_remote_bench_of_two_devices_gives_each_its_rows(server, device, bundle, tmp_path_factory):
    other = start_loopback(tmp_path_factory.mktemp("other"))
    try:
        found = remote_bench([device, other.device("other")], [bundle], QUICK, timeouts=HASTY)
    finally:
        other.stop()
    assert [(result.device, len(result.rows), result.failure) for result in found] == [("loop", 1, None), ("other", 1, None)]


def test_remote_bench_of_a_device_that_fails_keeps_the_rows_of_the_other(device, bundle):
    away = replace(device, name="away", port=1)
    found = remote_bench([away, device], [bundle], QUICK, timeouts=HASTY)
    assert (len(found[0].rows), len(found[1].rows)) == (0, 1)
    assert "127.0.0.1 refuses connections on port 1" in found[0].failure


def test_remote_bench_of_a_device_whose_files_can_not_be_read_keeps_the_rows_of_the_other(server, bundle, tmp_path):
    broken, whole = (server.device(name, cache=str(tmp_path / name)) for name in ("broken", "whole"))
    run = tmp_path / "broken" / "runs" / Order(pack([bundle], None), QUICK).id
    (run / "rows.jsonl").mkdir(parents=True)
    first, second = remote_bench([broken, whole], [bundle], QUICK, timeouts=HASTY)
    assert first.failure.startswith("broken: ")
    assert (second.failure, len(second.rows)) == (None, 1)


@pytest.mark.parametrize("content", ["nonsense\n", "{}\n", "[1]\n", '{"id": "a", "conditions": {}, "predictions": 3}\n'])
def test_remote_bench_of_a_device_whose_rows_are_damaged_says_so(device, bundle, cache, content):
    run = cache / "runs" / Order(pack([bundle], None), QUICK).id
    run.mkdir(parents=True)
    (run / "rows.jsonl").write_text(content)
    result = measure(device, bundle)
    assert re.search(r"^loop: .*rows.jsonl is damaged .*; look at it there, or remove what is there", result.failure)
    assert (run / "rows.jsonl").read_text() == content


def test_remote_bench_rejects_a_device_given_twice(device, bundle):
    with pytest.raises(BenchError, match="device loop is given twice"):
        remote_bench([device, device], [bundle], QUICK)


# --- the connection drops


def test_a_cut_while_measuring_loses_nothing_and_measures_nothing_twice(server, device, bundle, cache):
    proxy = Proxy(server)
    threading.Thread(target=lambda: (started(cache), proxy.cut()), daemon=True).start()
    try:
        result = measure(replace(device, port=proxy.port), bundle, LONG)
    finally:
        proxy.stop()
    assert (result.failure, [row["batch"] for row in result.rows]) == (None, [1, 2, 3, 4])
    assert proxy.connections == 2


def test_a_cut_after_a_long_silence_is_tried_again(server, device, bundle, cache):
    proxy = Proxy(server)
    threading.Thread(target=lambda: (started(cache), proxy.cut()), daemon=True).start()
    try:
        # nothing is told for longer than the patience before the cut, as while an engine is built
        result = measure(replace(device, port=proxy.port), bundle, LONG, timeouts=replace(HASTY, patience_s=0.01))
    finally:
        proxy.stop()
    assert (result.failure, len(result.rows), proxy.connections) == (None, 4, 2)


def test_remote_bench_gives_up_on_a_device_that_does_not_come_back(server, device, bundle, cache):
    proxy = Proxy(server)
    threading.Thread(target=lambda: (started(cache), proxy.stop()), daemon=True).start()
    result = measure(replace(device, port=proxy.port), bundle, LONG, timeouts=replace(HASTY, patience_s=1))
    assert "for 1 s now; what has started there goes on, and the same command picks it up" in result.failure
    again = measure(device, bundle, LONG)
    assert (again.failure, [row["batch"] for row in again.rows]) == (None, [1, 2, 3, 4])
    assert again.picked_up


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "kept").write_text("something of the user's")
    (tmp_path / "lock").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match="lock"):
        open_lock(tmp_path / "lock")


# --- the process dies, the disk fills, somebody else measures


def test_a_killed_run_is_started_again_and_measures_only_the_rest(server, device, bundle, cache):
    killed = []

    def kill():
        run = started(cache)
        os.kill(pid_of_the_run(server), signal.SIGKILL)
        killed.append((run / "rows.jsonl").read_bytes())

    threading.Thread(target=kill, daemon=True).start()
    told = []
    result = measure(device, bundle, LONG, progress=lambda _, text: told.append(text))
    assert (result.failure, [row["batch"] for row in result.rows]) == (None, [1, 2, 3, 4])
    assert "the measuring process there was killed; starting it again" in told
    assert json.loads(killed[0].splitlines()[0]) == result.rows[0]


def test_a_run_that_dies_again_at_the_same_point_is_given_up(server, device, bundle, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'work' in sys.orig_argv:\n    sys.stderr.write('out of luck\\n')\n    os._exit(9)\n"
    )
    server.set_python(f'#!/bin/sh\nexport PYTHONPATH={tmp_path}\nexec {sys.executable} "$@"\n')
    try:
        result = measure(device, bundle)
    finally:
        server.set_python()
    assert "the measuring process died twice at the same point; its last words: out of luck" in result.failure


def test_a_run_of_somebody_else_is_named_and_not_disturbed(server, device, bundle, cache, tmp_path):
    thread = threading.Thread(target=measure, args=(device, bundle, LONG))
    thread.start()
    started(cache)
    result = measure(replace(device, cache=str(tmp_path / "mine")), bundle)
    assert "two at once would disturb each other" in result.failure
    assert f"@{socket.gethostname()} measures there since" in result.failure
    assert not (tmp_path / "mine" / "blobs").exists()  # nothing was sent
    thread.join()


def test_remote_bench_waits_for_its_turn(server, device, bundle, cache, tmp_path):
    thread = threading.Thread(target=measure, args=(device, bundle, LONG))
    thread.start()
    started(cache)
    told = []
    result = measure(
        replace(device, cache=str(tmp_path / "mine")), bundle, wait=True, progress=lambda _, text: told.append(text)
    )
    assert (result.failure, len(result.rows)) == (None, 1)
    assert any(text.startswith("waiting for ") for text in told)
    thread.join()


def test_a_second_call_of_the_same_job_follows_the_first(device, bundle, cache):
    first = []
    thread = threading.Thread(target=lambda: first.append(measure(device, bundle, LONG)))
    thread.start()
    started(cache)
    second = measure(device, bundle, LONG)
    thread.join()
    assert [row["batch"] for row in second.rows] in ([1, 2, 3, 4], [])  # the other may have brought them home already
    assert [row["batch"] for row in first[0].rows] in ([1, 2, 3, 4], [])
    assert first[0].rows or second.rows


def test_stop_ends_the_run_with_its_processes_and_the_next_call_measures_the_rest(server, device, bundle, cache):
    results = []
    job = replace(LONG, batches=tuple(range(1, 9)))
    thread = threading.Thread(target=lambda: results.append(measure(device, bundle, job)))
    thread.start()
    run = started(cache)
    group = pid_of_the_run(server)
    assert asyncio.run(tidy_device(device, "stop"))["stopped"]["id"] == run.name
    thread.join()
    assert "the run was stopped" in results[0].failure
    assert [pid for pid, state in processes_of(group) if state != "Z"] == []
    again = measure(device, bundle, job)
    assert (again.failure, again.picked_up, [row["batch"] for row in again.rows]) == (None, True, list(job.batches))
    assert again.rows[: len(results[0].rows)] == results[0].rows
    assert len({row["id"].partition("-")[0] for row in again.rows}) == 1


def processes_of(group):
    """Return the number and state of each process of a group."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone in between
            pid, _, state, _, found = file.read_text().replace(") ", " ").split()[:5]
            if int(found) == group:
                yield int(pid), state


def test_clean_leaves_nothing_of_ours(server, device, bundle, cache):
    measure(device, bundle)
    freed = asyncio.run(tidy_device(device, "clean"))
    assert freed["freed_bytes"] > (bundle / "model.onnx").stat().st_size
    assert not cache.exists()
    assert list(server.home.rglob("*")) == []


def test_a_full_disk_is_told_and_loses_no_finished_measurement(server, device, bundle, cache):
    """A limit on the size of files stands for the disk: rows beyond it can't be written."""
    measure(device, bundle)  # so that what is longer is there
    server.limit("trap '' XFSZ; ulimit -f 80")  # blocks of 512 bytes; a row of 1500 runs has about 30
    job = replace(QUICK, batches=tuple(range(1, 9)), max_runs=1500)
    try:
        result = measure(device, bundle, job)
    finally:
        server.limit("")
    assert "could not write" in result.failure
    assert 0 < len(result.rows) < 8
    again = measure(device, bundle, job)
    assert (again.failure, len(again.rows)) == (None, 8)
    assert again.rows[: len(result.rows)] == result.rows


def test_an_interruption_here_leaves_the_device_going_on_and_is_picked_up(server, device, bundle, cache):
    script = (
        "import signal, sys\n"
        # tests that a shell runs in its background inherit that interruptions are ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path[:0] = {[entry for entry in sys.path if entry]!r}\n"
        "from test_remote_bench import *\n"
        "from shallowvit_bench.remote.registry import Device\n"
        f"try:\n    measure({device!r}, Path({str(bundle)!r}), LONG)\nexcept BenchError as err:\n    print(err)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    started(cache)
    process.send_signal(signal.SIGINT)
    assert "what has started on loop goes on there. Pick its rows up with the same command" in process.communicate()[0]
    result = measure(device, bundle, LONG)
    assert (result.failure, result.picked_up, len(result.rows)) == (None, True, 4)
