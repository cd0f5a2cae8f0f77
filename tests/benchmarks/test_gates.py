import pytest

from shallowvit_bench.errors import BenchError
from shallowvit_bench.gates import check_gates, parse_gate, parse_share

ROW = {
    "side": "half",
    "provider": "cpu",
    "batch": 1,
    "status": "ok",
    "reason": None,
    "runs": 300,
    "p50_ms": 9.98,
    "p99_ms": None,
    "intervals_ms": {"p50_ms": [9.8, 10.1]},
    "metrics": {"top1": {"value": 0.785, "low": 0.77, "high": 0.8}},
    "data": "demo",
    "energy_item_mj": None,
    "power_reason": "no sensor here",
}


@pytest.mark.parametrize(
    ("text", "name", "sign", "limit"),
    [
        ("p99_ms > 10", "p99_ms", ">", 10.0),
        ("  p50_ms>=.5ms ", "p50_ms", ">=", 0.5),
        ("p50_ms > 0.01 s", "p50_ms", ">", 10.0),
        ("load_ms > 1e3", "load_ms", ">", 1000.0),
        ("top1 < 80%", "top1", "<", 0.8),
        ("top1 <= 0.8", "top1", "<=", 0.8),
        ("drift > 150%", "drift", ">", 1.5),
        ("speedup < 1.5x", "speedup", "<", 1.5),
        ("energy_item_mj > 1 J", "energy_item_mj", ">", 1000.0),
        ("peak_mib > 2 GiB", "peak_mib", ">", 2048.0),
        ("batch != 1", "batch", "!=", 1.0),
    ],
)
def test_parse_gate_reads_name_sign_and_limit_in_the_figures_unit(text, name, sign, limit):
    gate = parse_gate(text)
    assert (gate.name, gate.sign, gate.limit) == (name, sign, pytest.approx(limit))


@pytest.mark.parametrize(
    "text", ["", "p50_ms", "p50_ms = 5", "p50_ms <> 5", "p50_ms > nan", "p50_ms > 1 ms ms", "5 < p50_ms", "p50_ms > x()"]
)
def test_parse_gate_of_another_form_is_refused(text):
    with pytest.raises(BenchError, match="is no gate; write NAME SIGN NUMBER"):
        parse_gate(text)


def test_parse_gate_of_a_misspelt_figure_names_near_ones():
    with pytest.raises(BenchError, match=r"no figure 'p99' in .*; did you mean p99_ms"):
        parse_gate("p99 > 10")


@pytest.mark.parametrize("name", ["quality", "side", "samples_ms", "schema", "conditions", "__class__"])
def test_parse_gate_of_no_number_is_refused(name):
    with pytest.raises(BenchError, match="parse_gate: "):
        parse_gate(f"{name} > 1")


@pytest.mark.parametrize(("text", "units"), [("p50_ms > 5%", "write ms or us or s"), ("batch > 3 ms", "leave the unit out")])
def test_parse_gate_with_another_figures_unit_is_refused(text, units):
    with pytest.raises(BenchError, match=units):
        parse_gate(text)


def test_parse_gate_of_a_share_above_1_asks_for_percent():
    with pytest.raises(BenchError, match=r"top1 is a share from 0 to 1, .* is 80; write 0.8 or 80%"):
        parse_gate("top1 < 80")


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 2.5 %", 0.025), ("150%", 1.5), ("0", 0.0)])
def test_parse_share_reads_percent_and_fractions(text, share):
    assert parse_share(text, "--max-regression") == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "-5%", "five", "", "5 % of it"])
def test_parse_share_of_another_form_is_refused(text):
    with pytest.raises(BenchError, match=r"--max-regression: .* is no share; write it as 5% or 0\.05"):
        parse_share(text, "--max-regression")


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("p50_ms > 9.9", True),
        ("p50_ms > 9.98", False),
        ("p50_ms >= 9.98", True),
        ("p50_ms < 9.98", False),
        ("p50_ms <= 9.98", True),
        ("runs == 300", True),
        ("runs != 300", False),
        ("top1 < 78%", False),
        ("top1 < 79%", True),
    ],
)
def test_check_gates_fails_where_the_comparison_holds(text, failed):
    (result,) = check_gates([ROW], [parse_gate(text)])
    assert result.failed is failed


def test_check_gates_gives_the_figure_with_its_interval_and_the_limit():
    (result,) = check_gates([ROW], [parse_gate("p50_ms > 9 ms")])
    assert result.sentence == "p50_ms is 9.98 ms (95 %: 9.8 ms to 10.1 ms), above 9 ms"
    assert result.row == "half, cpu, batch 1"


def test_check_gates_with_the_limit_inside_the_interval_says_so():
    (result,) = check_gates([ROW], [parse_gate("p50_ms > 10")])
    assert not result.failed
    assert "not above 10 ms; the limit is within the interval" in result.sentence


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("p99_ms > 10", "it needs 662 runs, there were 300"),
        ("top5 < 0.9", "demo gives no top5"),
        ("energy_item_mj > 5", "no sensor here"),
        ("speedup < 1.2", "give --against"),
        ("device_p50_ms > 1", "this run has none"),
    ],
)
def test_check_gates_of_what_was_not_measured_fails_with_the_reason(text, why):
    (result,) = check_gates([ROW], [parse_gate(text)])
    assert (result.failed, result.value) == (True, None)
    assert why in result.sentence


def test_check_gates_of_a_figure_that_is_no_number_fails():
    (result,) = check_gates([ROW | {"p50_ms": float("nan")}], [parse_gate("p50_ms > 10")])
    assert result.failed


@pytest.mark.parametrize("status", ["failed", "invalid"])
def test_check_gates_of_a_run_that_does_not_count_fails(status):
    (result,) = check_gates([ROW | {"status": status, "reason": "too hot"}], [parse_gate("p50_ms > 100")])
    assert result.failed
    assert f"the run is {status}, too hot" in result.sentence


def test_check_gates_checks_every_row_and_gate():
    results = check_gates([ROW, ROW | {"batch": 8}], [parse_gate("p50_ms > 10"), parse_gate("top1 < 0.7")])
    assert [(result.row[-7:], result.gate.name) for result in results] == [
        ("batch 1", "p50_ms"),
        ("batch 1", "top1"),
        ("batch 8", "p50_ms"),
        ("batch 8", "top1"),
    ]


def test_check_gates_without_rows_is_refused():
    with pytest.raises(BenchError, match="no rows to check"):
        check_gates([], [parse_gate("p50_ms > 10")])


def test_check_gates_passes_over_rows_of_loadgen():
    assert len(check_gates([ROW, ROW | {"scenario": "SingleStream", "p50_ms": None}], [parse_gate("p50_ms > 10")])) == 1


def test_check_gates_names_the_device_of_each_row():
    rows = [ROW | {"machine": name} for name in ("left", "right")]
    assert [found.row.partition(",")[0] for found in check_gates(rows, [parse_gate("p50_ms > 1")])] == [
        f"{ROW['side']} on left",
        f"{ROW['side']} on right",
    ]
