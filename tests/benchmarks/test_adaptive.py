import hashlib
import json

import numpy as np
import pytest
import typer
from tiny_bundles import write_bundle
from typer.testing import CliRunner

from shallowvit.cli.bench import bench as bench_command
from shallowvit_bench.adaptive import adaptive_sides, read_adaptive
from shallowvit_bench.adaptive_choice import NEVER, choose_depths, first_above, sufficiency
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import bench
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.cycling import Cycled, real_batches
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.demo_clips import demo_clips
from shallowvit_bench.errors import BenchError
from shallowvit_bench.preprocessing import input_from_frames
from shallowvit_bench.runners import RUNNERS, RunnerOptions
from shallowvit_bench.runners.adaptive import Part, open_adaptive

NAMES = ["depth-1", "depth-2", "depth-4"]
QUICK = BenchConfig(max_runs=16, threads=1, provider="cpu", power=False)


def write_adaptive(folder, thresholds=(0.4, 0.8), shares=(0.25, 0.25, 0.5)):
    """A gate and three depths, all of random weights."""
    folder.mkdir()
    write_bundle(folder / "gate", seed=9, labels=NAMES)
    for seed, name in enumerate(NAMES):
        write_bundle(folder / name, seed=seed)
    entries = [{"path": name, "sha256": _sha256(folder / name / "model.onnx")} for name in ("gate", *NAMES)]
    manifest = {
        "schema_version": 1,
        "name": folder.name,
        "gate": entries[0],
        "depths": entries[1:],
        "thresholds": list(thresholds),
        "expected": {"gate": {"shares": list(shares)}},
    }
    (folder / "adaptive.json").write_text(json.dumps(manifest))
    return folder


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change(folder, **entries):
    file = folder / "adaptive.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.fixture
def adaptive(tmp_path):
    return write_adaptive(tmp_path / "mix")


@pytest.fixture
def clips(tmp_path):
    found = demo_clips("test", 48)
    np.savez(tmp_path / "clips.npz", frames=found.frames, labels=found.labels)
    return tmp_path / "clips.npz"


def parts_of(folder, fixed=None):
    options = RunnerOptions(threads=1)
    return [Part(lambda path=folder / name / "model.onnx": RUNNERS["cpu"](path, options), fixed) for name in ("gate", *NAMES)]


def inputs_of(folder, count=12):
    return input_from_frames(demo_clips("test", count).frames, read_bundle(folder / "depth-4"))


def each_answer(folder, inputs):
    """What gate and depths answer on their own."""
    with_all = []
    for part in parts_of(folder):
        with part.opener() as runner:
            with_all.append(runner.infer(inputs).copy())
    return with_all


def test_choose_depths_takes_the_first_whose_sum_reaches_its_threshold():
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]))
    np.testing.assert_allclose(sufficiency(logits), [[0.6, 0.9], [0.2, 0.9], [0.1, 0.3]])
    assert choose_depths(logits, (0.5, 0.8)).tolist() == [0, 1, 2]
    assert choose_depths(logits, (NEVER, NEVER)).tolist() == [2, 2, 2]


def test_first_above_sends_nan_to_the_deepest():
    assert first_above(np.array([[np.nan, np.nan]]), (0.0, 0.0)).tolist() == [2]


def test_infer_gives_each_item_the_answer_of_its_depth_in_order(adaptive):
    inputs = inputs_of(adaptive)
    gate, *depths = each_answer(adaptive, inputs)
    thresholds = tuple(np.quantile(sufficiency(gate), 0.6, axis=0).tolist())
    chosen = choose_depths(gate, thresholds)
    assert len(set(chosen.tolist())) > 1
    with open_adaptive(parts_of(adaptive), tuple(NAMES), thresholds) as runner:
        found = runner.infer(inputs)
        shares = runner.take_shares()
        assert runner.take_shares() == {}
    expected = np.stack([depths[depth][item] for item, depth in enumerate(chosen)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert shares == {name: float((chosen == depth).mean()) for depth, name in enumerate(NAMES)}


def test_infer_of_graphs_with_a_fixed_batch_fills_and_splits(adaptive):
    inputs = inputs_of(adaptive, 7)
    with open_adaptive(parts_of(adaptive), tuple(NAMES), (0.4, 0.8)) as free:
        expected = free.infer(inputs).copy()
    with open_adaptive(parts_of(adaptive, fixed=4), tuple(NAMES), (0.4, 0.8)) as runner:
        np.testing.assert_allclose(runner.infer(inputs), expected, rtol=1e-4, atol=1e-4)
        bound = runner.bind(inputs)
        bound()
        np.testing.assert_allclose(bound.output(), expected, rtol=1e-4, atol=1e-4)


def test_open_adaptive_closes_what_it_opened_where_a_part_fails(adaptive):
    closed = []

    class Opened:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            closed.append(True)

    def fails():
        raise BenchError("no such graph")

    with pytest.raises(BenchError, match="no such graph"):
        open_adaptive([Part(Opened), Part(fails)], ("a",), ())
    assert closed == [True]


def test_cycled_runs_batch_after_batch_and_begins_again(adaptive):
    bundle = read_bundle(adaptive / "depth-1")
    inputs = inputs_of(adaptive, 3)
    with RUNNERS["cpu"](bundle.model_path, RunnerOptions(threads=1)) as runner:
        expected = runner.infer(inputs).copy()
        cycled = Cycled(runner, [inputs[i : i + 1] for i in range(3)])
        answers = []
        for _ in range(4):
            cycled()
            answers.append(cycled.output()[0].copy())
        np.testing.assert_allclose(np.stack(answers), expected[[0, 1, 2, 0]], rtol=1e-4, atol=1e-4)
        cycled.restart()
        cycled()
        np.testing.assert_allclose(cycled.outputs()["output"][0], expected[0], rtol=1e-4, atol=1e-4)


def test_real_batches_are_items_of_the_data_drawn_once(adaptive, clips):
    bundle = read_bundle(adaptive / "depth-1")
    dataset = open_dataset(str(clips), bundle)
    batches = real_batches(dataset, bundle, 5)
    assert [len(one) for one in batches] == [5] * 9
    every = {row.tobytes() for row in input_from_frames(dataset.take(range(48)), bundle)}
    drawn = [row.tobytes() for batch in batches for row in batch]
    assert set(drawn) <= every
    assert len(set(drawn)) == 45
    again = real_batches(dataset, bundle, 5)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    with pytest.raises(BenchError, match="holds 48 items, too few to time batches of 49"):
        real_batches(dataset, bundle, 49)


def test_bench_of_an_adaptive_bundle_measures_the_mix_against_each_depth(adaptive, clips):
    sides, datasets = adaptive_sides(read_adaptive(adaptive), QUICK, str(clips))
    mix, deepest, *others = bench(sides, QUICK, datasets)
    assert [one.side for one in (mix, deepest, *others)] == ["mix", "depth-4", "depth-2", "depth-1"]
    assert {one.status for one in (mix, deepest, *others)} == {"ok"}
    bundle = read_bundle(adaptive / "depth-4")
    inputs = input_from_frames(demo_clips("test", 48).frames, bundle)
    gate, *depths = each_answer(adaptive, inputs)
    chosen = choose_depths(gate, (0.4, 0.8))
    assert mix.depth_shares == pytest.approx({name: (chosen == i).mean() for i, name in enumerate(NAMES)})
    answers = np.stack([depths[depth][item] for item, depth in enumerate(chosen)]).argmax(axis=1)
    assert mix.metrics["top1"].value == pytest.approx((answers == demo_clips("test", 48).labels).mean())
    assert mix.agreement == pytest.approx((answers == depths[-1].argmax(axis=1)).mean())
    assert mix.speedup == pytest.approx(np.mean(deepest.samples_ms) / np.mean(mix.samples_ms))
    assert deepest.depth_shares == {}


def test_adaptive_sides_expect_the_cost_of_gate_and_shares(adaptive, clips):
    info = read_adaptive(adaptive)
    sides, _ = adaptive_sides(info, QUICK, str(clips))
    assert sides[0].flops == 200 + 200  # each tiny bundle says 200
    assert sides[0].bundle.model_sha256 == _sha256(adaptive / "adaptive.json")


def test_adaptive_sides_refuse_what_would_time_made_up_inputs(adaptive):
    info = read_adaptive(adaptive)
    with pytest.raises(
        BenchError, match="is adaptive, and how long it takes depends on the inputs; name real ones with --data"
    ):
        adaptive_sides(info, QUICK, None)
    config = BenchConfig(scenario="SingleStream", provider="cpu")
    with pytest.raises(BenchError, match="--scenario times one input again and again"):
        adaptive_sides(info, config, "demo")


def test_read_adaptive_names_what_is_wrong(adaptive):
    with pytest.raises(BenchError, match="has schema_version 2, this harness reads 1; update"):
        change(adaptive, schema_version=2)
        read_adaptive(adaptive)
    change(adaptive, schema_version=1, thresholds=[0.5])
    with pytest.raises(BenchError, match="names 3 depths, 1 thresholds and 3 shares"):
        read_adaptive(adaptive)
    change(adaptive, thresholds=["x", 1])
    with pytest.raises(BenchError, match="lacks or misuses the field"):
        read_adaptive(adaptive)
    change(adaptive, gate={"path": "gate", "sha256": "00"})
    with pytest.raises(BenchError, match=r"the graph of .*gate has sha256 .* says 00"):
        read_adaptive(adaptive)
    (adaptive / "adaptive.json").write_text("{")
    with pytest.raises(BenchError, match=r"adaptive\.json can't be read"):
        read_adaptive(adaptive)


def test_read_bundle_of_an_adaptive_one_says_so(adaptive):
    with pytest.raises(BenchError, match="is an adaptive bundle, whose depths are bundles of their own"):
        read_bundle(adaptive)


def run(*arguments):
    app = typer.Typer()
    app.command()(bench_command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_bench_command_prints_the_mix_and_its_shares(adaptive, clips):
    result = run(adaptive, "--data", clips, "--max-runs", "8", "--threads", "1", "--no-power", "--provider", "cpu")
    assert result.exit_code == 0
    assert "answered by depth-1 " in result.stdout
    rows = [json.loads(line) for line in (adaptive.parent / "mix.bench.jsonl").read_text().splitlines()]
    assert {row["side"] for row in rows} == {"mix", *NAMES}
    assert sum(rows[-4]["depth_shares"].values()) == pytest.approx(1)


def test_bench_command_refuses_devices_and_other_sides(adaptive):
    with pytest.raises(BenchError, match="is measured on this machine against its own depths"):
        run(adaptive, "--data", "demo", "--against", "torch")
    with pytest.raises(BenchError, match="is measured on this machine against its own depths"):
        run(adaptive, "--data", "demo", "--device", "nvidia@10.0.0.7")
