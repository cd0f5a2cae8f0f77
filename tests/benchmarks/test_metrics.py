import numpy as np
import pytest

from shallowvit_bench.errors import BenchError
from shallowvit_bench.metrics import Truth, metrics_from_outputs, predictions_from_outputs, wilson_interval

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 9, 300)
SCORES = (RNG.standard_normal((300, 9)) + 2 * np.eye(9)[LABELS]).astype(np.float32)


def figures(outputs, labels, kind="classes", **more):
    return metrics_from_outputs(outputs, Truth(kind, np.asarray(labels), **more)).metrics


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics", reason="our figures are compared with those of torchmetrics")


@pytest.fixture
def tensors():
    torch = pytest.importorskip("torch", reason="torchmetrics works on torch tensors")
    return lambda *arrays: [torch.from_numpy(np.array(array)) for array in arrays]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("top1", {"average": "micro"}), ("top5", {"average": "micro", "top_k": 5}), ("mean_class", {"average": "macro"})],
)
def test_metrics_of_classes_are_those_of_torchmetrics(torchmetrics, tensors, name, settings):
    expected = torchmetrics.functional.classification.multiclass_accuracy(*tensors(SCORES, LABELS), num_classes=9, **settings)
    found = figures(SCORES, LABELS)[name]
    assert found.value == pytest.approx(float(expected), abs=1e-6)
    assert found.low < found.value < found.high


def test_metrics_of_classes_leave_out_classes_without_items():
    found = figures(np.eye(9, dtype=np.float32)[[0, 0, 3]], [0, 3, 3])
    assert found["mean_class"].value == pytest.approx(0.75)


def test_top5_of_equal_scores_is_no_better_than_chance():
    found = figures(np.zeros((9, 9), np.float32), np.arange(9))
    assert (found["top1"].value, found["top5"].value) == (1 / 9, 5 / 9)


def test_top5_is_left_out_for_five_classes():
    assert "top5" not in figures(SCORES[:, :5], LABELS % 5)


def test_mean_class_interval_of_one_class_is_wilsons():
    found = figures(np.eye(9, dtype=np.float32)[[4, 4, 4, 0]], [4, 4, 4, 4])["mean_class"]
    assert (found.low, found.high) == pytest.approx(wilson_interval(3, 4))


def test_mean_class_interval_holds_with_two_items_a_class():
    # 200 draws of 30 classes with 2 items each: a 95 % interval may miss 10; a bootstrap misses 38
    rng, shares, missed = np.random.default_rng(1), np.linspace(0.5, 0.98, 30), 0
    labels = np.repeat(np.arange(30), 2)
    for _ in range(200):
        right = rng.random(60) < shares[labels]
        found = figures(np.eye(30, dtype=np.float32)[np.where(right, labels, (labels + 1) % 30)], labels)["mean_class"]
        missed += not found.low <= shares.mean() <= found.high
    assert missed < 20


@pytest.mark.parametrize(("columns", "kind"), [(1, "binary"), (2, "binary"), (2, "classes"), (1, "classes")])
def test_metrics_of_two_classes_are_those_of_torchmetrics(torchmetrics, tensors, columns, kind):
    labels = LABELS % 2
    scores = np.round(RNG.standard_normal(300) + labels, 1).astype(np.float32)  # rounded, so that there are ties
    outputs = scores[:, None] if columns == 1 else np.stack([-scores, scores], axis=1)
    found = figures(outputs, labels, kind)
    expected = tensors(1 / (1 + np.exp(-scores)), labels)
    functional = torchmetrics.functional.classification
    assert found["auc"].value == pytest.approx(float(functional.binary_auroc(*expected)), abs=1e-6)
    assert found["average_precision"].value == pytest.approx(float(functional.binary_average_precision(*expected)), abs=1e-6)
    assert ("top1" in found) == (kind == "classes" and columns == 2)


def test_auc_interval_is_delongs():
    # worked by hand: 3 above both negatives, 1 above one of them
    scores, labels = np.array([[3.0], [1.0], [2.0], [0.0]], np.float32), [1, 1, 0, 0]
    found = figures(scores, labels, "binary")["auc"]
    # placements of positives 1 and 0.5, of negatives 0.5 and 1: variance 0.125 / 2 + 0.125 / 2; logit 1.0986, deviation 0.3536
    half = 1.959964 * 0.125**0.5 / (0.75 * 0.25)
    expected = [1 / (1 + np.exp(-np.log(3) + sign * half)) for sign in (1, -1)]
    assert (found.value, found.low, found.high) == pytest.approx((0.75, *expected))


def test_auc_interval_of_a_perfect_ranking_is_not_a_point():
    found = figures(np.arange(20, dtype=np.float32)[:, None], [0] * 15 + [1] * 5, "binary")["auc"]
    assert (found.value, found.low) == (1.0, pytest.approx(wilson_interval(5, 5)[0]))


def test_auc_interval_covers_the_truth():
    # scores two normals 1 apart: the AUC is 0.7602; 200 draws may miss 10
    rng, missed = np.random.default_rng(2), 0
    from shallowvit_bench.metrics import _delong_interval

    labels = np.repeat([0, 1], [40, 30])
    for _ in range(200):
        scores = rng.standard_normal(70) + labels
        auc = (scores[labels == 1][:, None] > scores[labels == 0]).mean()
        low, high = _delong_interval(scores, labels, float(auc))
        missed += not low <= 0.76025 <= high
    assert missed < 22


def people():
    """12 queries of 4 people and 40 gallery images of those and of distractors, on 3 cameras."""
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.arange(12) % 4 + 1, rng.integers(0, 5, 40)])
    cameras = rng.integers(1, 4, 52)
    features = rng.standard_normal((5, 16))[labels] + 1.5 * rng.standard_normal((52, 16))
    return features.astype(np.float32), labels, cameras, np.arange(52) < 12


def test_metrics_of_retrieval_are_those_of_torchmetrics(torchmetrics, tensors):
    features, labels, cameras, queries = people()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = unit[queries] @ unit[~queries].T
    same = labels[queries][:, None] == labels[~queries]
    kept = ~(same & (cameras[queries][:, None] == cameras[~queries]))
    query = np.broadcast_to(np.arange(12)[:, None], kept.shape)
    found = figures(features, labels, "retrieval", cameras=cameras, queries=queries)
    pairs = tensors(near[kept] + 2, same[kept])  # it takes no score below 0 for a hit
    (numbers,) = tensors(query[kept])
    retrieval = torchmetrics.retrieval
    assert found["map"].value == pytest.approx(float(retrieval.RetrievalMAP()(*pairs, indexes=numbers)), abs=1e-6)
    for rank in (1, 5, 10):
        expected = retrieval.RetrievalHitRate(top_k=rank)(*pairs, indexes=numbers)
        assert found[f"rank{rank}"].value == pytest.approx(float(expected), abs=1e-6)
    assert found["map"].low < found["map"].value < found["map"].high


def test_metrics_of_retrieval_leave_out_the_same_camera():
    # the nearest image is of the same person by the same camera, then a stranger, then the person elsewhere
    features = np.array([[1, 0], [1, 0.01], [1, 0.1], [1, 0.2]], np.float32)
    truth = {"cameras": np.array([1, 1, 2, 3]), "queries": np.array([True, False, False, False])}
    found = figures(features, [7, 7, 8, 7], "retrieval", **truth)
    assert (found["map"].value, found["rank1"].value, found["rank5"].value) == (0.5, 0.0, 1.0)
    assert predictions_from_outputs(features, Truth("retrieval", np.array([7, 7, 8, 7]), **truth)).tolist() == [2, -1, -1, -1]


def test_metrics_of_retrieval_reject_a_gallery_without_matches():
    truth = {"cameras": np.array([1, 1]), "queries": np.array([True, False])}
    with pytest.raises(BenchError, match=r"no query has a match on another camera"):
        figures(np.ones((2, 3), np.float32), [7, 7], "retrieval", **truth)


def test_metrics_that_need_scikit_learn_are_left_out_with_a_remark(monkeypatch):
    monkeypatch.setattr("shallowvit_bench.metrics.find_spec", lambda name: None)
    found = metrics_from_outputs(SCORES[:, :2], Truth("classes", LABELS % 2))
    assert set(found.metrics) == {"top1", "mean_class"}
    assert "auc and average_precision need scikit-learn" in found.remarks[0]


@pytest.mark.parametrize(
    ("outputs", "labels", "kind", "match"),
    [
        (SCORES, LABELS + 1, "classes", r"a label is 9, the model gives 9 scores"),
        (SCORES, LABELS % 2, "binary", r"needs one or two scores an item, the model gives 9"),
        (SCORES[:, :1], LABELS * 0, "binary", r"both classes, 0 and 1; only one is left"),
        (SCORES[:, :1], LABELS, "classes", r"both classes, 0 and 1"),
    ],
)
def test_metrics_from_outputs_rejects_outputs_of_another_form(outputs, labels, kind, match):
    with pytest.raises(BenchError, match=match):
        figures(outputs, labels, kind)
