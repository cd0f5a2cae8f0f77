import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_bundles import IMAGE, write_bundle

from shallowvit_bench.accuracy import agreement, measure_accuracy, wilson_interval
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.metrics import metrics_from_predictions
from shallowvit_bench.predictions import read_predictions
from shallowvit_bench.preprocessing import input_from_frames
from shallowvit_bench.runners import RunnerFacts, RunnerOptions, open_onnxruntime


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


class FakeRunner:
    """Answers with what a function makes of a batch, for answers that no small graph gives."""

    def __init__(self, answer, **facts):
        self.infer = answer
        self.facts = RunnerFacts("fake", "fake", "fp32", **facts)


@pytest.mark.parametrize(
    ("batches", "sizes"), [(((4, 4),), [4] * 7), (((1, 1), (6, 8)), [8, 8, 8, 1]), (((2, 3),), [3] * 8 + [2])]
)
def test_measure_accuracy_gives_an_engine_batches_that_it_takes(labelled, batches, sizes):
    info, dataset = labelled
    seen = []
    with open_onnxruntime(info.model_path, RunnerOptions(threads=1)) as runner:

        def infer(batch):
            seen.append(len(batch))
            return runner.infer(batch)

        accuracy = measure_accuracy(FakeRunner(infer, batches=batches), info, dataset, 8)
    assert seen == sizes
    assert (accuracy.items, accuracy.metrics["top1"].value) == (25, 0.8)


@pytest.mark.parametrize("facts", [{"engine_sha256": "cd"}, {"version": "2.0"}])
def test_measure_accuracy_starts_anew_for_another_engine_or_version(labelled, tmp_path, facts):
    info, dataset = labelled
    before = {"engine_sha256": "ab", "version": "1.0"}
    measure_accuracy(FakeRunner(lambda batch: np.eye(len(batch), 40), **before), info, dataset, save=tmp_path / "out.jsonl")
    runs = []

    def infer(batch):
        runs.append(len(batch))
        return np.eye(len(batch), 40)

    measure_accuracy(FakeRunner(infer, **before), info, dataset, save=tmp_path / "out.jsonl")
    assert runs == []
    measure_accuracy(FakeRunner(infer, **(before | facts)), info, dataset, save=tmp_path / "out.jsonl")
    assert sum(runs) == 25


def test_measure_accuracy_rejects_a_model_that_is_no_classifier(labelled):
    info, dataset = labelled
    with pytest.raises(BenchError, match=r"gives \[8, 4, 5\] for 8 items, expected \[8, classes\]"):
        measure_accuracy(FakeRunner(lambda batch: np.zeros((len(batch), 4, 5))), info, dataset)


def test_measure_accuracy_rejects_answers_that_are_nan(labelled):
    info, dataset = labelled

    def overflow_once(batch):
        scores = np.zeros((len(batch), 40))
        scores[2, 7] = np.nan
        return scores

    with pytest.raises(BenchError, match=r"tiny answers with NaN to clips.npz\[2\]"):
        measure_accuracy(FakeRunner(overflow_once), info, dataset)


def test_measure_accuracy_copies_what_the_next_run_overwrites(labelled):
    info, dataset = labelled
    shared = np.zeros((1, 40), np.float32)
    calls = iter(range(25))

    def overwrite(batch):
        shared[:] = 0
        shared[0, next(calls)] = 1
        return shared

    assert measure_accuracy(FakeRunner(overwrite), info, dataset, batch=1).predictions == tuple(range(25))


def test_measure_accuracy_tells_speed_and_time_left(labelled):
    info, dataset = labelled
    told = []
    with open_runner(info) as runner:
        measure_accuracy(runner, info, dataset, 10, told.append)
    assert [text.partition(" items,")[0] for text in told] == ["10 of 25", "20 of 25", "25 of 25"]
    assert all("items/s, " in text and text.endswith(" left") for text in told)


def open_runner(info):
    return open_onnxruntime(info.model_path, RunnerOptions(threads=1))


class Stopping:
    """A real runner that is interrupted after some batches, as by Ctrl-C."""

    def __init__(self, runner, batches):
        self.runner, self.left, self.facts = runner, batches, runner.facts

    def infer(self, batch):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.runner.infer(batch)


def interrupted(info, dataset, path, batches):
    with open_runner(info) as runner, pytest.raises(KeyboardInterrupt):
        measure_accuracy(Stopping(runner, batches), info, dataset, 4, save=path)


def counted(info, dataset, path):
    """Measure on, and count the batches that it took."""
    with open_runner(info) as runner:
        stopping = Stopping(runner, 1000)
        return measure_accuracy(stopping, info, dataset, 4, save=path), 1000 - stopping.left


def test_measure_accuracy_goes_on_where_it_stopped(labelled, tmp_path):
    info, dataset = labelled
    interrupted(info, dataset, tmp_path / "p.jsonl", 3)
    resumed, batches = counted(info, dataset, tmp_path / "p.jsonl")
    with open_runner(info) as runner:
        assert resumed.predictions == measure_accuracy(runner, info, dataset, 4).predictions
    assert (batches, resumed.remarks) == (4, ())  # 13 of the 25 items were left
    assert counted(info, dataset, tmp_path / "p.jsonl")[1] == 0


def test_measure_accuracy_goes_on_after_a_line_was_written_by_half(labelled, tmp_path):
    info, dataset = labelled
    interrupted(info, dataset, tmp_path / "p.jsonl", 3)
    content = (tmp_path / "p.jsonl").read_bytes()
    (tmp_path / "p.jsonl").write_bytes(content[:-20] + b" " * 50_000)  # longer than what is written over it
    assert len(read_predictions(tmp_path / "p.jsonl").items) == 8
    resumed, batches = counted(info, dataset, tmp_path / "p.jsonl")
    assert (batches, resumed.items) == (5, 25)
    assert len([json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]) == 1 + 7


def test_measure_accuracy_starts_anew_for_another_graph(labelled, tmp_path):
    info, dataset = labelled
    other = read_bundle(write_bundle(tmp_path / "other", seed=1))
    interrupted(info, dataset, tmp_path / "p.jsonl", 3)
    found, batches = counted(other, dataset, tmp_path / "p.jsonl")
    assert batches == 7
    assert found.remarks[0].endswith("p.jsonl held outputs of another model_sha256, so it is started anew")


def test_measure_accuracy_starts_anew_for_other_data(labelled, tmp_path):
    info, dataset = labelled
    interrupted(info, dataset, tmp_path / "p.jsonl", 3)
    frames = dataset.take(range(25))
    frames[24, 0, 0, 0, 0] += 1
    np.savez(tmp_path / "clips.npz", frames=frames, labels=dataset.labels)
    found, batches = counted(info, open_dataset(str(tmp_path / "clips.npz"), info), tmp_path / "p.jsonl")
    assert batches == 7
    assert "another dataset_sha256" in found.remarks[0]


def test_measure_accuracy_names_a_place_that_cannot_be_written(labelled, tmp_path):
    info, dataset = labelled
    with open_runner(info) as runner, pytest.raises(BenchError, match=r"p.jsonl can't be written \(No such file"):
        measure_accuracy(runner, info, dataset, save=tmp_path / "gone" / "p.jsonl")


def test_read_predictions_gives_outputs_and_truth(labelled, tmp_path):
    info, dataset = labelled
    with open_runner(info) as runner:
        accuracy = measure_accuracy(runner, info, dataset, save=tmp_path / "p.jsonl")
        expected = np.array(runner.infer(input_from_frames(dataset.take(range(25)), info)))
    saved = read_predictions(tmp_path / "p.jsonl")
    np.testing.assert_allclose(saved.outputs, expected, rtol=1e-5)
    np.testing.assert_array_equal(saved.truth.labels, dataset.labels)
    assert saved.about["model_sha256"] == info.model_sha256
    assert metrics_from_predictions(tmp_path / "p.jsonl").metrics == accuracy.metrics
    assert accuracy.saved == tmp_path / "p.jsonl"


def test_read_predictions_rejects_another_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"side": "a"}) + "\n")
    with pytest.raises(BenchError, match=r"rows.jsonl is no file of saved outputs"):
        read_predictions(tmp_path / "rows.jsonl")


@pytest.fixture
def images(image_bundle, tmp_path):
    """20 images of which one can't be read."""
    pillow = pytest.importorskip("PIL.Image", reason="image folders need Pillow")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            pillow.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    whole = (tmp_path / "data/dog/4.png").read_bytes()
    (tmp_path / "data/dog/4.png").write_bytes(b"no image")
    return read_bundle(image_bundle), tmp_path / "data", whole


def test_measure_accuracy_lists_what_cannot_be_read(images, tmp_path):
    info, folder, _whole = images
    dataset = open_dataset(str(folder), info)
    found, _batches = counted(info, dataset, tmp_path / "p.jsonl")
    assert (found.items, len(found.predictions), found.predictions[14]) == (19, 20, -1)
    ((name, reason),) = found.unreadable
    assert name == "dog/4.png"
    assert "4.png can't be read as an image" in reason
    kept = np.arange(20) != 14
    assert found.metrics["top1"].value == np.mean(np.array(found.predictions)[kept] == dataset.labels[kept])
    assert read_predictions(tmp_path / "p.jsonl").unreadable == found.unreadable


def test_measure_accuracy_tries_again_what_could_not_be_read(images, tmp_path):
    info, folder, whole = images
    counted(info, open_dataset(str(folder), info), tmp_path / "p.jsonl")
    (folder / "dog/4.png").write_bytes(whole)
    found, batches = counted(info, open_dataset(str(folder), info), tmp_path / "p.jsonl")
    assert (found.items, found.unreadable, batches) == (20, (), 1)
    assert read_predictions(tmp_path / "p.jsonl").unreadable == ()


def test_measure_accuracy_runs_again_what_was_replaced(images, tmp_path):
    info, folder, whole = images
    counted(info, open_dataset(str(folder), info), tmp_path / "p.jsonl")
    (folder / "cat/0.png").write_bytes(whole)
    found, batches = counted(info, open_dataset(str(folder), info), tmp_path / "p.jsonl")
    assert batches == 1
    with open_runner(info) as runner:
        assert found.predictions == measure_accuracy(runner, info, open_dataset(str(folder), info)).predictions


def test_measure_accuracy_rejects_more_unreadable_items_than_allowed(images):
    info, folder, _whole = images
    (folder / "cat/7.png").write_bytes(b"")
    with (
        open_runner(info) as runner,
        pytest.raises(BenchError, match=r"2 of 20 items of data can't be read so far, more than the 5%.*first is cat/7.png"),
    ):
        measure_accuracy(runner, info, open_dataset(str(folder), info))


def test_agreement_leaves_out_what_one_side_could_not_read(images):
    info, folder, whole = images
    with open_runner(info) as runner:
        ours = measure_accuracy(runner, info, open_dataset(str(folder), info))
        (folder / "dog/4.png").write_bytes(whole)
        theirs = measure_accuracy(runner, info, open_dataset(str(folder), info))
    assert (theirs.items, agreement(ours, theirs).agreement) == (20, 1.0)


def test_measure_accuracy_averages_views_as_probabilities(labelled):
    info, _ = labelled

    class Views:
        in_memory = True

        def __len__(self):
            return 2

        def read(self, item):
            return np.full((3, 8, 16, 16, 3), item, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None, None]

        def name(self, item):
            return str(item)

        def stamp(self, item):
            return 0

    answers = {0: [9.0, 0, 0], 1: [0, 3.0, 0], 2: [0, 3.0, 0], 3: [0, 0, 0.4]}

    def answer(batch):
        mean = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
        levels = np.round((batch[:, 0, 0, 0, 0] * mean[1][0] + mean[0][0]) * 255).astype(int)
        return np.array([answers[level] for level in levels])

    dataset = replace(labelled[1], count=2, items=Views(), labels=np.array([0, 1]), views=3)
    found = measure_accuracy(FakeRunner(answer), info, dataset, batch=2)
    # item 0: the mean of the probabilities is 0.36, 0.61, 0.03; of the scores it would be 3, 2, 0
    assert found.predictions == (1, 1)


def test_measure_accuracy_feeds_inputs_as_they_are(tmp_path):
    graph = IMAGE["graph"] | {"input": {"name": "x", "dtype": "float32", "layout": "NF", "shape": [12]}}
    info = read_bundle(write_bundle(tmp_path / "raw", graph=graph, preprocessing=None, labels=["a", "b", "c"]))
    inputs = np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32)
    with open_runner(info) as runner:
        labels = runner.infer(inputs).argmax(axis=1)
        np.savez(tmp_path / "a.npz", inputs=inputs.astype(np.float64), labels=labels)
        found = measure_accuracy(runner, info, open_dataset(str(tmp_path / "a.npz"), info))
    assert found.metrics["top1"].value == 1.0


def test_measure_accuracy_of_one_score_has_an_auc_and_no_classes(labelled, tmp_path):
    info, dataset = labelled
    labels = np.arange(25) % 2
    np.savez(tmp_path / "two.npz", frames=dataset.take(range(25)), labels=labels)
    two = open_dataset(f"binary:{tmp_path}/two.npz", info)
    answers = iter(labels + np.linspace(0, 1.2, 25))
    found = measure_accuracy(FakeRunner(lambda batch: np.array([next(answers) for _ in batch])), info, two)
    assert set(found.metrics) == {"auc", "average_precision"}
    assert found.predictions == (-1,) * 25
    assert agreement(found, found).agreement is None


def test_measure_accuracy_ranks_a_gallery(image_bundle, tmp_path):
    pillow = pytest.importorskip("PIL.Image", reason="image folders need Pillow")
    for number, name in enumerate(("query/0001_c1s1_1_0.png", "query/0002_c1s1_1_0.png", *GALLERY)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pillow.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / name)
    (tmp_path / "query/0001_c1s1_0_0.png").write_bytes(b"no image")  # the first item, so the others' numbers are shifted
    info = read_bundle(image_bundle)
    features = {0: [1, 0], 1: [0, 1], 2: [1, 0], 3: [0.9, 0.1], 4: [0.5, 0.5]}
    runner = FakeRunner(lambda batch: np.array([features[round(image[0, 0, 0] * 25.5)] for image in batch]))
    found = measure_accuracy(runner, info, open_dataset(f"market1501:{tmp_path}", info), max_unreadable=0.2)
    # the image that is most like the first query is by the same camera, so it doesn't count
    assert found.predictions == (-1, 4, 5, -1, -1, -1)
    assert (found.metrics["rank1"].value, found.metrics["map"].value) == (1.0, 1.0)


GALLERY = ("bounding_box_test/0001_c1s1_2_0.png", "bounding_box_test/0001_c2s1_1_0.png", "bounding_box_test/0002_c2s1_1_0.png")


@pytest.mark.parametrize(
    ("correct", "items", "low", "high"), [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval_gives_published_values(correct, items, low, high):
    assert wilson_interval(correct, items) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
