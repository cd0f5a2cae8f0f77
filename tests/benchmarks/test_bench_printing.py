import io
import sys
import threading

from made_up_rows import made_up_row, made_up_sweep

from shallowvit.cli.bench_printing import caveats, print_measurements, progress_lines
from shallowvit_bench.measurement import row_from_measurement


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_lines_show_stages_and_start_no_thread_that_would_draw_within_timed_runs(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with progress_lines(silent=False) as progress:
        progress("half: loading")
        progress("8 of at most 1000 runs a side")
        progress("16 of at most 1000 runs a side")
        progress("[/half] measuring")
        assert threading.active_count() == before
    shown = sys.stderr.getvalue()
    assert all(text in shown for text in ("half: loading", "8 of at most 1000 runs", "[/half] measuring"))
    assert "16 of at most" not in shown  # it came at once after the other


def test_print_measurements_of_many_cuts_no_figure_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [row_from_measurement(one) | {"machine": "orin", "p99_ms": 12345.678} for one in made_up_sweep()]
    print_measurements(rows, [])
    lines = capsys.readouterr().out.splitlines()
    assert all(title in " ".join(lines[:2]) for title in ("p50 ms", "p99 ms", "items/s", "top-1", "speed-up"))
    assert sum(line.rstrip().endswith("1.91x") for line in lines) == sum(row["speedup"] is not None for row in rows)


def test_caveats_warn_of_a_speedup_of_few_runs():
    few, enough = (row_from_measurement(made_up_row("half", runs=runs, speedup=145.0)) for runs in (2, 40))
    assert "the speed-up is of 2 runs, a median needs 11, so don't quote it; raise --max-seconds" in caveats([few])
    assert not any("speed-up" in text for text in caveats([enough]))


def test_caveats_tell_what_auto_passed_over():
    trials = (
        {"provider": "cpu", "status": "chosen", "ratio": 1.0, "reason": ""},
        {"provider": "openvino", "status": "slower", "ratio": 1.54, "reason": "faster than cpu in 87% of the rounds"},
        {"provider": "openvino-bf16", "status": "slower", "ratio": 0.5, "reason": "faster than cpu in 0% of the rounds"},
    )
    row = row_from_measurement(made_up_row("half", provider="cpu", provider_trials=trials))
    (text,) = [text for text in caveats([row]) if "auto took" in text]
    assert text == (
        "auto took cpu: openvino was 1.54x as fast as cpu, but faster than cpu in 87% of the rounds, and 90 % are needed"
    )
