"""Take small models of every family through the whole line, each in a process of its own, and write a row for each.

    python benchmarks/families/run.py [--only vit-timm,swin-timm] [--family video] [--no-engine] [--time-limit 300]

Load -> score by entropy -> what would become of each block -> one block or pair removed -> ONNX of opset 23 compared with
torch -> TensorRT-RTX engine of fp16 with its attentions counted. Rows are appended to ``benchmarks/results/families.jsonl``;
the newest of a name counts. A newcomer's trap: a refusal is a result, with its sentence in the row; a traceback is a row with
the status ``crash``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shallowvit_bench.conditions import read_conditions

if TYPE_CHECKING:
    from families.cases import Case

RESULTS = Path(__file__).resolve().parents[1] / "results" / "families.jsonl"
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "tensorrt_rtx_cu13",
)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # an id looked up by mistake fails at once


def all_cases() -> tuple[Case, ...]:
    """Return the cases of both tables."""
    from families.papers.table import PAPERS
    from families.stock import STOCK

    return (*STOCK, *PAPERS)


def measure(name: str, time_limit_s: float, *, engine: bool) -> dict[str, Any]:
    """Walk the line with one case in a process of its own; return its row."""
    conditions = asdict(read_conditions(None))  # the load before, not by the case itself
    conditions["packages"] |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        row_path = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--worker", name, folder, *(["--no-engine"] if not engine else [])]
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | _OFFLINE, start_new_session=True
        )
        status, peak_mib, late = _waited(process, started + time_limit_s)
        row: dict[str, Any] = json.loads(row_path.read_text()) if row_path.is_file() else {"name": name, "stage": "start"}
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    row |= {"wall_s": round(time.perf_counter() - started, 1), "peak_mib": peak_mib}
    if late:
        row |= {"status": "crash", "reason": f"{row['stage']} was still running after {time_limit_s:g} s"}
    elif status:
        row |= {"status": "crash", "reason": lines[-1] if lines else f"exit status {status}", "traceback": _frames(lines)}
    if "status" not in row:
        row["status"] = _verdict(row)
    return row | {"machine": platform.machine(), "conditions": conditions}


def _waited(process: subprocess.Popen[bytes], deadline: float) -> tuple[int, int, bool]:
    """Wait until the process ends or the deadline has passed; return its status, its peak and whether it was stopped."""
    late = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, round(usage.ru_maxrss / 1024), late
        if time.perf_counter() > deadline and not late:
            late = True
            os.killpg(process.pid, signal.SIGKILL)  # the builder is a process of its own
        time.sleep(0.1)


def _frames(lines: list[str]) -> list[str]:
    """Where a traceback was: the last frames of this project, and the last of all."""
    frames = [line.strip().replace(str(RESULTS.parents[2]) + "/", "") for line in lines if line.startswith('  File "')]
    own = [frame for frame in frames if "site-packages" not in frame]
    return [*own[-2:], *frames[-1:]]


def _verdict(row: dict[str, Any]) -> str:
    """``passes`` where every stage gave a result; ``refused`` where one didn't."""
    engine = row.get("engine", {"status": "passes"})["status"]  # passed where it wasn't asked for
    parts = (row.get("way") != "refused", row["export"]["status"] == "passes", engine == "passes")
    return "passes" if all(parts) else "refused"


def _told(row: dict[str, Any]) -> str:
    export, engine = row.get("export", {}), row.get("engine", {})
    error = export.get("relative_error")
    parity = export.get("reason") or (f"{export['attentions']} attentions, {error:.0e}" if error is not None else "")
    fused = f"{engine['fused']}/{engine['attentions']}" if "fused" in engine else engine.get("reason", "")
    return (
        f"{row['status']:8s} {row['name']:30s} {row.get('way', '')} {row.get('reason') or ''} | {parity} | {fused} "
        f"| {row['wall_s']:.0f} s {row['peak_mib']} MiB"
    )


def main() -> None:
    """Measure the cases that were asked for, and say how many passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of cases, with commas")
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--no-engine", action="store_true", help="stop at the graph in fp32")
    parser.add_argument("--time-limit", type=float, default=400.0, help="seconds a case may take")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file that rows are appended to")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    cases = {case.name: case for case in all_cases()}
    if given.worker:
        from families.line import walk

        name, folder = given.worker
        walk(cases[name], Path(folder), Path(folder) / "row.json", engine=not given.no_engine)
        return
    wanted = given.only.split(",") if given.only else [name for name in cases if given.family in (None, cases[name].family)]
    unknown = [name for name in wanted if name not in cases]
    if unknown or not wanted:
        raise SystemExit(f"no case {', '.join(unknown) or given.family}; there are {', '.join(cases)}")
    verdicts: Counter[str] = Counter()
    for name in wanted:
        row = measure(name, given.time_limit, engine=not given.no_engine)
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        verdicts[row["status"]] += 1
        sys.stdout.write(_told(row)[:400] + "\n")
        sys.stdout.flush()
    sys.stdout.write(", ".join(f"{count} {status}" for status, count in verdicts.items()) + "\n")


if __name__ == "__main__":
    main()
