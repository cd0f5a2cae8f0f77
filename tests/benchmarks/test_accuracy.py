import numpy as np
import pytest
from tiny_bundles import write_bundle

from shallowvit_bench.accuracy import agreement, measure_accuracy, wilson_interval
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.preprocessing import input_from_frames
from shallowvit_bench.runners import RunnerOptions, open_onnxruntime


@pytest.fixture
def labelled(bundle, tmp_path):
    """25 clips labelled with the bundle's own predictions, but 5 of them wrongly."""
    info = read_bundle(bundle)
    frames = np.random.default_rng(0).integers(0, 256, (25, 8, 16, 16, 3), np.uint8)
    with open_onnxruntime(info.model_path, RunnerOptions(threads=1)) as runner:
        labels = runner.infer(input_from_frames(frames, info)).argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 40
    np.savez(tmp_path / "clips.npz", frames=frames, labels=labels)
    return info, open_dataset(str(tmp_path / "clips.npz"), info)


@pytest.mark.parametrize("batch", [1, 8, 100])
def test_measure_accuracy_counts_right_predictions_at_any_batch(labelled, batch):
    info, dataset = labelled
    with open_onnxruntime(info.model_path, RunnerOptions(threads=1)) as runner:
        accuracy = measure_accuracy(runner, info, dataset, batch)
    top1 = accuracy.metrics["top1"]
    assert (accuracy.items, top1.value) == (25, 0.8)
    assert top1.low < 0.8 < top1.high


def test_agreement_is_the_share_of_same_predictions(labelled, tmp_path):
    info, dataset = labelled
    other = read_bundle(write_bundle(tmp_path / "other", seed=1))
    results = []
    for side in (info, other):
        with open_onnxruntime(side.model_path, RunnerOptions(threads=1)) as runner:
            results.append(measure_accuracy(runner, side, dataset))
    same = np.mean(np.array(results[0].predictions) == np.array(results[1].predictions))
    assert agreement(*results).agreement == same
    assert agreement(results[0], results[0]).agreement == 1.0


class EncoderRunner:
    name = "encoder"

    def infer(self, batch):
        return np.zeros((len(batch), 4, 5))


def test_measure_accuracy_rejects_a_model_that_is_no_classifier(labelled):
    info, dataset = labelled
    with pytest.raises(BenchError, match=r"gives \[8, 4, 5\] for 8 items, expected \[8, classes\]"):
        measure_accuracy(EncoderRunner(), info, dataset)


@pytest.mark.parametrize(
    ("correct", "items", "low", "high"), [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval_gives_published_values(correct, items, low, high):
    assert wilson_interval(correct, items) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
