"""The search over precisions, with real graphs on onnxruntime; which of two speeds wins is tested on made-up rounds."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shallowvit import ExportConfig, ShallowvitError
from shallowvit.exporting import Precision, export_onnx
from shallowvit.exporting.calibration_inputs import info_of_graph
from shallowvit.exporting.evaluation import outputs_of, read_evaluation
from shallowvit.exporting.precision_search import CANDIDATES, Candidate, SearchConfig, search_precision
from shallowvit.exporting.quantize_records import CalibrationMethod, QuantizeConfig, TrialStatus
from shallowvit_bench.timing import TimingLimits

LIMITS = TimingLimits(max_runs=12, max_seconds=2.0, round_runs=3, max_warm_up_runs=3)
FP32 = Candidate(Precision.FP32, Precision.FP32)
BF16 = Candidate(Precision.BF16, Precision.BF16)
INT8 = Candidate(Precision.INT8, Precision.FP32)
INT4 = Candidate(Precision.INT4, Precision.FP32)


@pytest.fixture(scope="module")
def graphs(pruned_video, tmp_path_factory):
    """Each float graph exported once."""
    folder = tmp_path_factory.mktemp("floats")
    return {
        precision: export_onnx(pruned_video, folder / f"{precision}.onnx", ExportConfig(precision))
        for precision in (Precision.FP32, Precision.BF16)
    }


@pytest.fixture
def export(graphs):
    def export_to(precision, path):
        path.write_bytes(graphs[precision].path.read_bytes())
        export_to.made.append(precision)
        return path

    export_to.made = []
    return export_to


@pytest.fixture(scope="module")
def info(pruned_video, graphs):
    exported = graphs[Precision.FP32]
    return info_of_graph(pruned_video.model, exported.input, exported.path, "fp32")


def _data(path, count, seed, **labels):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 4, 16, 16, 3), np.uint8)
    np.savez(path, frames=frames, **labels)
    return str(path)


@pytest.fixture
def config(tmp_path):
    def made(*candidates, max_drop=0.9, calibrated=True, **settings):
        data = _data(tmp_path / "data.npz", 30, 0, labels=np.arange(30) % 5)
        calibration = _data(tmp_path / "calibration.npz", 16, 1) if calibrated else None
        quantize = QuantizeConfig(data=calibration, samples=16, block_size=32)
        return SearchConfig(data, quantize, max_drop, limits=LIMITS, threads=1, candidates=candidates, **settings)

    return made


def test_search_precision_measures_what_runs_and_says_why_the_rest_does_not(export, info, config, tmp_path):
    found = search_precision(export, info, tmp_path, config(FP32, BF16, INT8, INT4))
    trials = {trial.name: trial for trial in found.trials}
    assert list(trials) == ["fp32", "bf16", "int8-minmax-on-fp32", "int4-on-fp32"]
    assert trials["bf16"].status is TrialStatus.UNSUPPORTED
    assert "Could not find an implementation" in trials["bf16"].reason
    assert trials["bf16"].median_ms is trials["bf16"].ratio is None
    ran = [trials[name] for name in ("fp32", "int8-minmax-on-fp32", "int4-on-fp32")]
    assert sorted(trial.status for trial in ran).count(TrialStatus.CHOSEN) == 1
    assert trials[found.chosen].status is TrialStatus.CHOSEN
    for trial in ran:
        assert trial.ratio_low <= trial.ratio_high
        assert trial.ratio == pytest.approx(trials["fp32"].median_ms / trial.median_ms)
        assert trial.bytes == (tmp_path / trial.file).stat().st_size
        assert (trial.check.items, trial.check.computed_by) == (30, "cpu")
    assert trials["fp32"].check.top1_agreement == 1
    assert trials["int4-on-fp32"].check.relative_error > trials["int8-minmax-on-fp32"].check.relative_error > 0
    assert (found.runs, found.batch, found.backend) == (12, 1, "cpu")
    assert sorted(export.made) == ["bf16", "fp32"]  # once each


def test_search_precision_says_nothing_of_this_machines_folders(export, info, config, tmp_path):
    found = search_precision(export, info, tmp_path, config(FP32, BF16))
    assert not any(str(tmp_path) in trial.reason for trial in found.trials)


def test_search_precision_without_calibration_data_leaves_int8_out(export, info, config, tmp_path):
    found = search_precision(export, info, tmp_path, config(FP32, INT8, calibrated=False))
    assert found.chosen == "fp32"
    assert found.trials[1].status is TrialStatus.UNSUPPORTED
    assert "name a data set with --calibration" in found.trials[1].reason


def test_search_precision_never_takes_what_loses_more_than_allowed(export, info, graphs, config, tmp_path):
    data = _data(tmp_path / "many.npz", 600, 9)
    expected, _ = outputs_of(graphs[Precision.FP32].path, "fp32", read_evaluation(info, data))
    _data(tmp_path / "many.npz", 600, 9, labels=expected.argmax(1))  # fp32 has all of them right, so another answer is a loss
    settings = replace(config(FP32, INT4, max_drop=0.0), data=data)
    found = search_precision(export, info, tmp_path, settings)
    trial = found.trials[1]
    assert (found.chosen, trial.status) == ("fp32", TrialStatus.INACCURATE)
    assert trial.check.drop > 0
    assert f"loses {100 * trial.check.drop:.2f} points top-1, above 0.00" in trial.reason
    assert trial.median_ms is None


def test_search_precision_without_labels_holds_to_agreement(export, info, config, tmp_path):
    settings = replace(config(FP32, INT4, max_drop=0.0), data=_data(tmp_path / "unlabelled.npz", 600, 9))
    trial = search_precision(export, info, tmp_path, settings).trials[1]
    assert trial.status is TrialStatus.INACCURATE
    assert trial.check.drop is None
    assert f"loses {100 * (1 - trial.check.top1_agreement):.2f} points of the items (at most" in trial.reason


def test_search_precision_nothing_that_runs_is_an_error(export, info, config, tmp_path):
    with pytest.raises(ShallowvitError, match=r"no candidate can run here .* bf16: open_onnxruntime"):
        search_precision(export, info, tmp_path, config(BF16))


def test_search_precision_loads_what_build_makes_of_a_graph(export, info, config, tmp_path):
    def build(path):
        if path.stem != "fp32":
            raise ShallowvitError(f"build: no kernels for {path.name}")
        return shutil.copy(path, path.with_suffix(".engine"))

    settings = config(FP32, INT4)
    settings = replace(settings, build=lambda path: Path(build(path)))
    found = search_precision(export, info, tmp_path, settings)
    assert (tmp_path / "fp32.engine").is_file()
    assert (found.chosen, found.trials[1].reason) == ("fp32", "build: no kernels for int4-on-fp32.onnx")


def test_candidates_stand_from_the_most_exact_on_and_have_names_of_their_own():
    names = [candidate.name for candidate in CANDIDATES]
    assert names[:3] == ["fp32", "fp16", "bf16"]
    assert len(set(names)) == len(names)
    assert Candidate(Precision.INT8, Precision.FP16, CalibrationMethod.PERCENTILE).name == "int8-percentile-on-fp16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "abacus"}, "unknown backend 'abacus'; choose from cpu, openvino"),
        ({"max_drop": 1.5}, "--max-accuracy-drop 1.5 isn't a share from 0 to 1"),
    ],
)
def test_search_config_refuses_what_makes_no_sense(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        SearchConfig("demo", **settings)
