from made_up_rows import made_up_row, made_up_sweep

from shallowvit.cli.bench_printing import caveats, print_measurements
from shallowvit_bench.measurement import row_from_measurement


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
