"""Run a bound batch under MLPerf's LoadGen in its standard scenarios, and read what LoadGen makes of it.

LoadGen sends queries and keeps the time; the figures are its own, from its log. A newcomer's trap: only 600 seconds and more
are what MLPerf asks for, and even then this is no submission, since LoadGen runs in one process with fixed input and nobody
reviewed it.
"""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .runners import Bound

__all__ = ["SCENARIOS", "ScenarioResult", "check_scenario", "read_detail_log", "run_scenario"]

_SUBMISSION_SECONDS = 600.0
_STREAM_SAMPLES = 8  # of a query in MultiStream
_LIBRARY = 1024  # samples that LoadGen draws from; the input is the same for each


@dataclass(frozen=True)
class _Scenario:
    """What MLPerf reports: the key of LoadGen's log, its name and unit, and the factor to that unit."""

    key: str
    metric: str
    unit: str
    factor: float
    fewest_queries: int  # what early stopping needs of the percentile; 24,576 samples for Offline


# LoadGen names the estimate of MultiStream early_stopping_latency_ms, after the scenario; like the other it is in nanoseconds
SCENARIOS = {
    "SingleStream": _Scenario("early_stopping_latency_ss", "90th percentile latency", "ms", 1e-6, 64),
    "MultiStream": _Scenario("early_stopping_latency_ms", "99th percentile latency of 8 samples", "ms", 1e-6, 662),
    "Offline": _Scenario("result_samples_per_second", "samples per second", "samples/s", 1.0, 24_576),
}


@dataclass(frozen=True)
class ScenarioResult:
    """What LoadGen reports.

    Args:
        value: The scenario's metric in ``unit``; None: too few queries for its estimate.
        valid: LoadGen's own verdict; ``reasons`` says why not, and what else it noted.
        shortened: Whether it ran less than MLPerf asks for.
        figures: The other figures of the summary, times in milliseconds.
        remarks: What must be said with the figures, each a sentence.
    """

    scenario: str
    metric: str
    unit: str
    value: float | None
    valid: bool
    reasons: tuple[str, ...]
    shortened: bool
    figures: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    version: str | None = None


def run_scenario(
    run: Bound,
    batch: int,
    scenario: str,
    seconds: float = _SUBMISSION_SECONDS,
    progress: Callable[[str], None] = lambda _: None,
    log_folder: Path | None = None,
) -> ScenarioResult:
    """Let LoadGen time a bound batch that is warm; queries of more samples than a batch holds are split.

    Args:
        run: Runs ``batch`` samples at each call, in this thread.
        batch: Samples of a run.
        scenario: A key of ``SCENARIOS``.
        seconds: How long at least; a run of less than 600 ends at three times its seconds, and its result says so.
        progress: Told what is going on, a line at a time.
        log_folder: Where LoadGen's log files stay; None: they are read and removed.

    Raises:
        BenchError: LoadGen isn't installed, there is no such scenario, SingleStream got a batch of more than one, or
            ``seconds`` isn't above 0.
    """
    mlperf_loadgen = check_scenario(scenario, batch, seconds)
    with ExitStack() as stack:
        folder = log_folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        run_ms = _estimate_ms(run)
        test = _test_settings(mlperf_loadgen, scenario, seconds, run_ms, batch)
        _start(mlperf_loadgen, test, folder, _Issuer(mlperf_loadgen, run, batch, progress))
        log = read_detail_log(folder / "mlperf_log_detail.txt")
    return _result_from_log(log, scenario, seconds, batch)


def check_scenario(scenario: str, batch: int, seconds: float = _SUBMISSION_SECONDS) -> Any:
    """Return LoadGen's module, if it is installed and can run a scenario with these settings.

    Raises:
        BenchError: see ``run_scenario``.
    """
    if scenario not in SCENARIOS:
        raise BenchError(f"loadgen: no scenario {scenario!r}; choose one of {', '.join(SCENARIOS)}")
    if scenario == "SingleStream" and batch != 1:
        raise BenchError(f"loadgen: SingleStream sends one sample a query, the batch is {batch}; measure it with --batch 1")
    if not seconds > 0:
        raise BenchError(f"loadgen: a run of {seconds:g} s measures nothing; give more than 0, a submission's is 600")
    try:
        import mlperf_loadgen
    except ImportError as err:
        raise BenchError("loadgen: MLPerf LoadGen is not installed here. Run: pip install 'shallowvit[mlperf]'") from err
    return mlperf_loadgen


class _Issuer:
    """Answers LoadGen's queries. An exception must not unwind LoadGen's C++, which aborts the process, so it waits here."""

    def __init__(self, loadgen: Any, run: Bound, batch: int, progress: Callable[[str], None]) -> None:
        self.failure: BaseException | None = None
        self._loadgen, self._run, self._batch, self._progress = loadgen, run, batch, progress
        self._done, self._told = 0, perf_counter()

    def issue(self, queries: list[Any]) -> None:
        """Run all samples and say that they are complete; after a failure only the latter, so that LoadGen comes to its end."""
        response = self._loadgen.QuerySampleResponse
        for start in range(0, len(queries), self._batch):
            if self.failure is None:
                try:
                    self._run()
                    self._tell(len(queries))
                except BaseException as err:  # noqa: BLE001 - see the class
                    self.failure = err
            part = queries[start : start + self._batch]
            self._loadgen.QuerySamplesComplete([response(query.id, 0, 0) for query in part])

    def _tell(self, samples: int) -> None:
        self._done += min(samples, self._batch)
        if perf_counter() - self._told > 1:
            self._told = perf_counter()
            self._progress(f"LoadGen: {self._done:,} samples")


def _estimate_ms(run: Bound) -> float:
    """A run's time, roughly, from which LoadGen plans how many queries it needs."""
    times = []
    for _ in range(5):
        begun = perf_counter()
        run()
        times.append(1e3 * (perf_counter() - begun))
    return max(min(times), 1e-3)  # too long an estimate would end the test before its time


def _test_settings(loadgen: Any, scenario: str, seconds: float, run_ms: float, batch: int) -> Any:
    test = loadgen.TestSettings()
    test.scenario = getattr(loadgen.TestScenario, scenario)
    test.mode = loadgen.TestMode.PerformanceOnly
    test.min_duration_ms = math.ceil(1e3 * seconds)
    shortened = seconds < _SUBMISSION_SECONDS
    if scenario == "Offline":
        # one query holds all samples, of which LoadGen itself adds a tenth to those expected
        test.offline_expected_qps = batch * 1e3 / run_ms
        test.min_query_count = 1 if shortened else SCENARIOS[scenario].fewest_queries
        return test
    test.min_query_count = SCENARIOS[scenario].fewest_queries
    if shortened:
        test.max_duration_ms = 3 * test.min_duration_ms
    # half of what was seen: LoadGen makes its queries beforehand and ends the test when they run out
    query_ns = int(5e5 * run_ms * (1 if scenario == "SingleStream" else math.ceil(_STREAM_SAMPLES / batch)))
    test.single_stream_expected_latency_ns = test.multi_stream_expected_latency_ns = query_ns
    return test


def _start(loadgen: Any, test: Any, folder: Path, issuer: _Issuer) -> None:
    """Run the test to its end; then raise what went wrong in a run."""
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs.log_output = output
    system = loadgen.ConstructSUT(issuer.issue, lambda: None)
    library = loadgen.ConstructQSL(_LIBRARY, _LIBRARY, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, test, logs, "")
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if issuer.failure is not None:
        raise issuer.failure


def read_detail_log(path: Path) -> list[tuple[str, Any]]:
    """Read the entries of LoadGen's ``mlperf_log_detail.txt``, as key and value in their order; other lines are passed over.

    Raises:
        BenchError: there is no such file.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as err:
        raise BenchError(f"loadgen: no log at {path} ({err.strerror}); LoadGen ended before it wrote one, run again") from err
    found = []
    for line in lines:
        mark, _, text = line.partition(" ")
        if mark != ":::MLLOG":
            continue
        try:
            entry = json.loads(text)
        except ValueError:  # the last line of a run that was killed
            continue
        if isinstance(entry, dict) and "key" in entry:
            found.append((str(entry["key"]), entry.get("value")))
    return found


def _result_from_log(log: Iterable[tuple[str, Any]], scenario: str, seconds: float, batch: int) -> ScenarioResult:
    entries = list(log)
    values = dict(entries)
    if "result_validity" not in values:
        raise BenchError("loadgen: LoadGen's log holds no result; it ended early, run again")
    facts = SCENARIOS[scenario]
    value = values.get(facts.key)
    shortened, remarks = _remarks(scenario, seconds, batch, values)
    valid = values["result_validity"] == "VALID"
    return ScenarioResult(
        scenario=scenario,
        metric=facts.metric,
        unit=facts.unit,
        value=value * facts.factor if value and values.get("early_stopping_met", True) else None,
        valid=valid,
        reasons=_reasons(entries, values, valid),
        shortened=shortened,
        figures=_figures(values),
        remarks=remarks,
        version=str(values["loadgen_version"]).split()[0] if "loadgen_version" in values else None,
    )


def _reasons(entries: list[tuple[str, Any]], values: dict[str, Any], valid: bool) -> tuple[str, ...]:
    """LoadGen's own words on an invalid result and on errors."""
    found = [" ".join(str(value).split()) for key, value in entries if key.startswith("error")]
    if not valid:
        unmet = {
            "result_min_duration_met": "the shortest duration was not reached",
            "result_min_queries_met": "there were fewer queries than asked for",
            "early_stopping_met": f"no estimate: {' '.join(str(values.get('early_stopping_result')).split())}",
        }
        found += [text for key, text in unmet.items() if values.get(key) is False]
        found.append(" ".join(str(values.get("result_invalid_reason") or "").split()))
    return tuple(dict.fromkeys(text for text in found if text))


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """The figures of the summary under short names: ``result_90.00_percentile_latency_ns`` becomes ``p90_ms``.

    MultiStream gives them of samples and of queries; queries are what it is about.
    """
    found: dict[str, float] = {}
    of_queries = "result_mean_query_latency_ns" in values
    for key, value in values.items():
        name = key.removeprefix("result_")
        if name == key or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not name.endswith("_latency_ns"):
            found[name] = value
            continue
        name = name.removesuffix("_latency_ns")
        if name.endswith("_query") == of_queries:
            name = name.removesuffix("_query").removesuffix("_per")
            if name.endswith("_percentile"):
                name = "p" + f"{float(name.removesuffix('_percentile')):g}".replace(".", "")
            found[f"{name}_ms"] = value / 1e6
    return found


def _remarks(scenario: str, seconds: float, batch: int, values: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether it was shorter than MLPerf asks for, and what must be said with the figures."""
    samples = (values.get("effective_samples_per_query") or 1) * (values.get("result_query_count") or 0)
    found = []
    shortened = seconds < _SUBMISSION_SECONDS
    if shortened:
        found.append(
            f"not a submission: it ran for {seconds:g} s at least, MLPerf asks for {_SUBMISSION_SECONDS:g}"
            + (f", and {samples:,} samples, MLPerf asks for 24,576" if scenario == "Offline" and samples < 24_576 else "")
        )
    else:
        found.append("not a submission: its rules, its accuracy run and its review are missing")
    if scenario == "MultiStream" and _STREAM_SAMPLES % batch:
        found.append(
            f"a query of {_STREAM_SAMPLES} samples is split into batches of {batch}, the last of which is computed whole"
        )
    return shortened, tuple(found)
