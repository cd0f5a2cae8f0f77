import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shallowvit_bench.errors import BenchError
from shallowvit_bench.trtexec import TrtexecRun, agreement_with_trtexec, parse_trtexec, read_trtexec_times

# TensorRT 8.6 on an Orin Nano, YOLOX-s in fp16
ORIN_NANO = """\
[02/26/2024-10:43:06] [I]
[02/26/2024-10:43:06] [I] === Performance summary ===
[02/26/2024-10:43:06] [I] Throughput: 97.8649 qps
[02/26/2024-10:43:06] [I] Latency: min = 10.642 ms, max = 10.9861 ms, mean = 10.7971 ms, median = 10.7972 ms, \
percentile(90%) = 10.9329 ms, percentile(95%) = 10.949 ms, percentile(99%) = 10.9744 ms
[02/26/2024-10:43:06] [I] Enqueue Time: min = 1.1098 ms, max = 2.30975 ms, mean = 1.36227 ms, median = 1.19873 ms, \
percentile(90%) = 1.9928 ms, percentile(95%) = 2.07275 ms, percentile(99%) = 2.15002 ms
[02/26/2024-10:43:06] [I] H2D Latency: min = 0.299072 ms, max = 0.373962 ms, mean = 0.316446 ms, median = 0.310486 ms, \
percentile(90%) = 0.332031 ms, percentile(95%) = 0.345398 ms, percentile(99%) = 0.354126 ms
[02/26/2024-10:43:06] [I] GPU Compute Time: min = 10.0343 ms, max = 10.3575 ms, mean = 10.1824 ms, median = 10.1851 ms, \
percentile(90%) = 10.3206 ms, percentile(95%) = 10.338 ms, percentile(99%) = 10.356 ms
[02/26/2024-10:43:06] [I] D2H Latency: min = 0.17041 ms, max = 0.312134 ms, mean = 0.29821 ms, median = 0.298584 ms, \
percentile(90%) = 0.302856 ms, percentile(95%) = 0.304077 ms, percentile(99%) = 0.310608 ms
[02/26/2024-10:43:06] [I] Total Host Walltime: 3.0348 s
[02/26/2024-10:43:06] [I] Total GPU Compute Time: 3.02418 s
[02/26/2024-10:43:06] [I] Explanations of the performance metrics are printed in the verbose logs.
&&&& PASSED TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=yolox.onnx --fp16
"""

# TensorRT 8.2 on a Jetson Nano
NANO = """\
[11/10/2022-22:09:08] [I] === Performance summary ===
[11/10/2022-22:09:08] [I] Throughput: 1.51249 qps
[11/10/2022-22:09:08] [I] Latency: min = 659.427 ms, max = 664.576 ms, mean = 661.149 ms, median = 660.98 ms, \
percentile(99%) = 664.576 ms
[11/10/2022-22:09:08] [I] End-to-End Host Latency: min = 659.438 ms, max = 664.586 ms, mean = 661.159 ms, \
median = 660.989 ms, percentile(99%) = 664.586 ms
[11/10/2022-22:09:08] [I] Total Host Walltime: 6.6116 s
[11/10/2022-22:09:08] [I] Total GPU Compute Time: 6.57757 s
"""

# TensorRT 8.4 on a Tesla M40, its warnings shortened: a throughput in powers of ten
M40 = """\
[07/25/2022-19:02:56] [W] [TRT] built without the tactic sources that were asked for
[07/25/2022-19:02:56] [I] === Performance summary ===
[07/25/2022-19:02:56] [I] Throughput: 2.54521e+06 qps
[07/25/2022-19:02:56] [I] GPU Compute Time: min = 5.99756 ms, max = 9.45909 ms, mean = 7.35231 ms, median = 7.1825 ms, \
percentile(99%) = 9.2168 ms
[07/25/2022-19:02:56] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be idle.
[07/25/2022-19:02:56] [W]   If not already in use, --useCudaGraph may increase the throughput.
[07/25/2022-19:02:56] [W] * GPU compute time is unstable, with coefficient of variance = 7.58229%.
[07/25/2022-19:02:56] [W]   If not already in use, locking GPU clock frequency may improve the stability.
"""

# TensorRT-RTX: no date, and no copies unless asked for, as in TensorRT 11
RTX = """\
[I] === Performance summary ===
[I] Throughput: 1133.1 qps
[I] Latency: min = 0.877441 ms, max = 0.886963 ms, mean = 0.881485 ms, median = 0.881592 ms, percentile(90%) = 0.883606 ms
[I] Enqueue Time: min = 0.004639 ms, max = 0.020630 ms, mean = 0.005356 ms, median = 0.005249 ms, percentile(90%) = 0.0058 ms
[I] GPU Compute Time: min = 0.877441 ms, max = 0.886963 ms, mean = 0.881485 ms, median = 0.881592 ms
"""

# TensorRT 10.3 (JetPack 6): single lines
ORIN = """\
[12/28/2023-10:51:16] [I] === Performance summary ===
[12/28/2023-10:51:16] [I] GPU Compute Time: min = 37.3687 ms, max = 46.7526 ms, mean = 40.6098 ms, median = 40.3651 ms, \
percentile(90%) = 43.1836 ms, percentile(95%) = 45.4991 ms, percentile(99%) = 46.7526 ms
[12/28/2023-10:51:16] [I] Total Host Walltime: 3.10731 s
[12/28/2023-10:51:16] [I] Total GPU Compute Time: 3.08634 s
[10/02/2026-07:32:12] [I] Throughput: 3.97 qps
[09/11/2022-22:54:32] [I] Latency: min = 1.17474 ms, max = 4.4541 ms, mean = 1.20348 ms, median = 1.1897 ms, \
percentile(99%) = 1.50061 ms
[09/11/2022-22:54:32] [W] * GPU compute time is unstable, with coefficient of variance = 12.3891%.
&&&& PASSED TensorRT.trtexec [TensorRT v100300]
"""

CAPTURES = [ORIN_NANO, NANO, M40, RTX, ORIN]


def test_parse_trtexec_reads_every_line_of_a_summary():
    report = parse_trtexec(ORIN_NANO)
    assert (report.version, report.passed, report.throughput_qps) == ("8.6.1", True, 97.8649)
    assert (report.walltime_s, report.total_compute_s) == (3.0348, 3.02418)
    assert (report.compute.min_ms, report.compute.max_ms) == (10.0343, 10.3575)
    assert (report.compute.mean_ms, report.compute.median_ms) == (10.1824, 10.1851)
    assert report.compute.percentiles_ms == {90.0: 10.3206, 95.0: 10.338, 99.0: 10.356}
    medians = [report.latency.median_ms, report.enqueue.median_ms, report.h2d.median_ms, report.d2h.median_ms]
    assert medians == [10.7972, 1.19873, 0.310486, 0.298584]
    assert (report.warnings, report.errors, report.others) == ((), (), {})


def test_parse_trtexec_of_8_2_reads_the_end_to_end_latency():
    report = parse_trtexec(NANO)
    assert (report.end_to_end.median_ms, report.latency.percentiles_ms) == (660.989, {99.0: 664.576})
    assert (report.version, report.passed, report.h2d) == (None, None, None)


def test_parse_trtexec_reads_powers_of_ten_and_joins_the_lines_of_a_warning():
    report = parse_trtexec(M40)
    assert report.throughput_qps == 2545210.0
    assert [warning[:20] for warning in report.warnings] == ["Throughput may be bo", "GPU compute time is "]
    assert report.warnings[1].endswith(
        "7.58229%. If not already in use, locking GPU clock frequency may improve the stability."
    )


def test_parse_trtexec_of_rtx_without_dates_has_no_copies():
    report = parse_trtexec(RTX)
    assert (report.latency.median_ms, report.h2d, report.d2h) == (0.881592, None, None)


def test_parse_trtexec_of_10_reads_version_and_lines_in_any_order():
    report = parse_trtexec(ORIN)
    assert (report.version, report.passed, report.throughput_qps, report.total_compute_s) == ("10.3.0", True, 3.97, 3.08634)
    assert len(report.warnings) == 1


@pytest.mark.parametrize(
    ("digits", "version"),
    [("8401", "8.4.1"), ("8502", "8.5.2"), ("101303", "10.13.3"), ("110100", "11.1.0"), ("10700", "1.7.0")],
)
def test_parse_trtexec_reads_the_version_of_the_banner(digits, version):
    assert parse_trtexec(f"&&&& FAILED TensorRT.trtexec [TensorRT v{digits}] [b9] # trtexec").version == version


def test_parse_trtexec_of_a_failed_run_keeps_its_errors():
    text = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec\n[09/11/2022-22:54:32] [E] Could not open file a.onnx\n"
    report = parse_trtexec(text + "&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec\n")
    assert (report.passed, report.errors, report.latency) == (False, ("Could not open file a.onnx",), None)


def test_parse_trtexec_of_a_run_that_was_cut_off_has_not_passed():
    assert parse_trtexec("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec").passed is None


def test_parse_trtexec_keeps_lines_it_does_not_know():
    report = parse_trtexec(
        NANO + "[I] DLA Compute Time: min = 1 ms, max = 3 ms, mean = 2 ms, median = 2.5 ms\n[I] Mood: fine\n"
    )
    assert report.others["DLA Compute Time"].median_ms == 2.5
    assert report.latency.median_ms == 660.98


def test_parse_trtexec_of_two_summaries_takes_the_last():
    assert parse_trtexec(ORIN_NANO + RTX).throughput_qps == 1133.1


def test_parse_trtexec_does_not_take_lines_before_the_summary():
    text = "[I] Latency: min = 1 ms, max = 1 ms, mean = 1 ms, median = 1 ms\n"
    assert parse_trtexec(text).latency is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_parse_trtexec_of_mutated_output_never_fails(data):
    text = data.draw(st.sampled_from(CAPTURES))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        text = text[:start] + data.draw(st.text(max_size=12)) + text[end:]
    report = parse_trtexec(text)
    for times in (report.latency, report.compute, *report.others.values()):
        for figure in (times.min_ms, times.max_ms, *times.percentiles_ms.values()) if times else ():
            assert figure is None or isinstance(figure, float)


@given(st.sampled_from(CAPTURES), st.integers(0, 40), st.text(max_size=60))
def test_parse_trtexec_with_an_unknown_line_reads_the_same(text, place, unknown):
    lines = text.splitlines()
    inserted = ["[I] " + line for line in unknown.replace(":", " ").splitlines()]
    place = 1 + place % len(lines)
    if lines[place - 1].endswith("==="):
        return
    assert parse_trtexec("\n".join([*lines[:place], *inserted, *lines[place:]])) == parse_trtexec(text)


def test_agreement_with_trtexec_without_copies_compares_with_compute():
    assert agreement_with_trtexec(10.1851 * 1.02, parse_trtexec(ORIN_NANO), copies=False) == pytest.approx(0.02)


def test_agreement_with_trtexec_with_copies_compares_with_latency():
    assert agreement_with_trtexec(10.7972 * 0.99, parse_trtexec(ORIN_NANO), copies=True) == pytest.approx(-0.01)


def test_agreement_with_trtexec_that_left_copies_out_is_refused():
    with pytest.raises(BenchError, match="trtexec ran without copies, our figure holds them"):
        agreement_with_trtexec(1.0, parse_trtexec(RTX), copies=True)


def test_agreement_with_trtexec_that_failed_is_refused():
    text = "[E] no such file\n&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec"
    with pytest.raises(BenchError, match="trtexec failed: no such file"):
        agreement_with_trtexec(1.0, parse_trtexec(text), copies=False)


def test_agreement_with_trtexec_of_no_summary_is_refused():
    with pytest.raises(BenchError, match="no median in trtexec's output"):
        agreement_with_trtexec(1.0, parse_trtexec("hello"), copies=False)


def test_read_trtexec_times_gives_the_runs_in_order(tmp_path):
    entry = {"startEnqMs": 1.0, "endEnqMs": 1.25, "computeMs": 2.0, "h2dMs": 0.5, "d2hMs": 0.25, "latencyMs": 2.75, "new": "x"}
    (tmp_path / "times.json").write_text(json.dumps([entry, {"computeMs": 3, "latencyMs": True}]))
    runs = read_trtexec_times(tmp_path / "times.json")
    assert runs == (TrtexecRun(2.75, 2.0, 0.5, 0.25, 0.25), TrtexecRun(None, 3.0, None, None, None))


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", "[1]", "null"])
def test_read_trtexec_times_of_another_file_is_refused(tmp_path, text):
    (tmp_path / "times.json").write_text(text)
    with pytest.raises(BenchError, match=r"read_trtexec_times: .*; write it with: trtexec --exportTimes="):
        read_trtexec_times(tmp_path / "times.json")
