"""The whole remote path against an aarch64 "board": a real SSH server whose python3 is that of Debian for arm64 under qemu.

Set $SHALLOWVIT_AARCH64 to a folder that ``aarch64_board.py`` made.
"""

import asyncio
import os
from pathlib import Path

import pytest
from aarch64_board import make_board, missing_tools
from loopback import start_loopback

from shallowvit_bench.config import BenchConfig
from shallowvit_bench.remote.bench import probe_device, remote_bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    if "SHALLOWVIT_AARCH64" not in os.environ:
        pytest.skip("no board; make one with: python tests/benchmarks/aarch64_board.py DIR, and set SHALLOWVIT_AARCH64=DIR")
    if missing := missing_tools():
        pytest.skip(f"no {', '.join(missing)} here; run: apt-get install qemu-user-static debootstrap")
    python = make_board(Path(os.environ["SHALLOWVIT_AARCH64"]).absolute())
    server = start_loopback(tmp_path_factory.mktemp("board"))
    server.set_python(f'#!/bin/sh\nexec {python} "$@"\n')
    yield server
    server.stop()


def test_a_board_with_another_architecture_measures_latency_and_accuracy(board, bundle):
    config = BenchConfig(max_runs=20, threads=1, provider="cpu", power=False)
    (result,) = remote_bench([board.device("board")], [bundle], config, "demo", progress=print)
    assert result.failure is None
    (row,) = result.rows
    assert (row["status"], row["reason"]) == ("ok", None)
    assert row["conditions"]["os"].endswith("aarch64")
    assert row["p50_ms"] > 0
    assert row["items"] > 0


def test_a_board_with_another_architecture_tells_what_it_has(board):
    found = asyncio.run(probe_device(board.device("board")))
    assert found["machine"] == "aarch64"
    assert found["facts"]["runtimes"]["onnxruntime"].startswith("1.23")
