from pathlib import Path
from types import SimpleNamespace

import pytest

from shallowvit.errors import ShallowvitError
from shallowvit.selfcheck import vendor_tool
from shallowvit.selfcheck.vendor_tool import compare_with_tool, find_tool

# TensorRT 10's printer; the figures are made up
SUMMARY = """\
[10/02/2026-07:32:12] [I] === Performance summary ===
[10/02/2026-07:32:12] [I] Throughput: 480.1 qps
[10/02/2026-07:32:12] [I] GPU Compute Time: min = 1.9 ms, max = 2.5 ms, mean = 2.03 ms, median = 2 ms, percentile(90%) = 2.1 ms
&&&& PASSED TensorRT.trtexec [TensorRT v100300]
"""


@pytest.fixture
def info(tmp_path):
    """What is read of a bundle with an engine; no engine can be run here, so our side's median is given."""
    engine = {"flavour": "tensorrt", "path": "engines/t/model.engine", "options": {}, "version": "10.3.0", "sm": [87]}
    graph_input = SimpleNamespace(name="pixels", least_shape=(8, 3, 16, 16), batch=True)
    return SimpleNamespace(path=tmp_path, manifest={"engines": [engine]}, inputs=(graph_input,))


def write_tool(folder, text, code=0):
    """A tool that writes its arguments down and prints what TensorRT's prints."""
    tool = folder / "trtexec"
    (folder / "summary").write_text(text)
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/arguments\ncat {folder}/summary\nexit {code}\n')
    tool.chmod(0o755)
    return str(tool)


def test_find_tool_looks_on_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tool("rtx") is None
    write_tool(tmp_path, SUMMARY)
    assert find_tool("tensorrt") == str(tmp_path / "trtexec")


def test_compare_with_tool_takes_turns_on_the_same_engine_and_shape(info, tmp_path, monkeypatch):
    monkeypatch.setattr(vendor_tool, "_our_median_ms", lambda info, flavour: 2.02)
    found = compare_with_tool(info, "tensorrt", write_tool(tmp_path, SUMMARY))
    assert (found.ours_ms, found.tool_ms, found.version) == (2.02, pytest.approx(2.0), "10.3.0")
    assert found.difference == pytest.approx(0.01)
    calls = Path(tmp_path / "arguments").read_text().splitlines()
    assert len(calls) == 2
    assert f"--loadEngine={tmp_path}/engines/t/model.engine --shapes=pixels:1x8x3x16x16 --useCudaGraph" in calls[0]


def test_compare_with_tool_says_how_the_tool_ended(info, tmp_path):
    tool = write_tool(tmp_path, "[E] Could not open engine\n", 1)
    with pytest.raises(ShallowvitError, match=r"trtexec ended with 1: \[E\] Could not open engine"):
        compare_with_tool(info, "tensorrt", tool)
