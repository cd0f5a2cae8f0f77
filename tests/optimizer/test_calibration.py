import numpy as np
import pytest
import torch

import shallowvit
from shallowvit import ScoreConfig, ShallowvitError
from shallowvit.exporting import deployable
from shallowvit.scoring import Calibration, read_calibration
from shallowvit.scoring.calibration import check_calibration, forward_arguments, taker_of
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.demo_clips import demo_clips
from shallowvit_bench.preprocessing import input_from_frames

from .small_models import stacked


def save_arrays(path, count=20, labels=None, frame=(4, 16, 16, 3)):
    frames = np.random.default_rng(0).integers(0, 256, (count, *frame), np.uint8)
    np.savez(path, frames=frames, **({} if labels is None else {"labels": labels}))
    return frames


def config(data, criterion="block-influence", **changes):
    return ScoreConfig(criterion, data=str(data), **changes)


def test_read_calibration_gives_what_the_exported_graph_is_given(video_model, bundle, tmp_path):
    frames = save_arrays(tmp_path / "a.npz")
    found = read_calibration(video_model, config(tmp_path / "a.npz", samples=20), labelled=False)
    order = np.random.default_rng(0).permutation(20)
    expected = input_from_frames(frames[order], read_bundle(bundle.path))
    np.testing.assert_allclose(found.inputs.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.inputs, deployable(video_model, preprocess=True).prepare(torch.from_numpy(frames[order])))
    assert (found.name, found.labels, len(found)) == ("a.npz", None, 20)


def test_read_calibration_draws_other_items_by_another_seed_and_none_twice(video_model, tmp_path):
    save_arrays(tmp_path / "a.npz", 100, np.arange(100) % 5)
    drawn = [
        read_calibration(video_model, config(tmp_path / "a.npz", samples=30, seed=seed), labelled=True).inputs
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len({item.numpy().tobytes() for item in drawn[0]}) == 30


def test_read_calibration_keeps_labels_beside_their_items(video_model, tmp_path):
    labels = np.arange(20) % 5
    frames = np.zeros((20, 4, 16, 16, 3), np.uint8) + labels[:, None, None, None, None].astype(np.uint8)
    for half in (0, 1):  # across the files of a folder
        np.savez(tmp_path / f"{half}.npz", frames=frames[half * 10 :][:10], labels=labels[half * 10 :][:10])
    found = read_calibration(video_model, config(tmp_path, samples=15), labelled=True)
    shown = (found.inputs[:, 0, 0, 0, 0] * 0.2 + 0.4) * 255  # the processor's first mean and deviation
    assert torch.equal(shown.round().long(), found.labels)
    assert len(set(found.labels.tolist())) == 5


def test_read_calibration_of_the_demo_keeps_train_and_test_apart(demo_source):
    model = shallowvit.load(demo_source)
    prepare = deployable(model, preprocess=True).prepare
    test = {item.numpy().tobytes() for item in prepare(torch.from_numpy(demo_clips("test").frames))}
    train = read_calibration(model, config("demo:train", samples=500), labelled=True)
    assert not test & {item.numpy().tobytes() for item in train.inputs}
    own = read_calibration(model, config("demo", samples=500), labelled=True)
    assert test >= {item.numpy().tobytes() for item in own.inputs}
    assert len(set(train.labels.tolist())) > 30


def test_read_calibration_for_a_pretrained_model_needs_no_labels(demo_source):
    model = shallowvit.load(f"{demo_source}:pretrained")
    assert read_calibration(model, config("demo:train", samples=3), labelled=False).labels is None
    with pytest.raises(ShallowvitError, match=r"the model demo:pretrained doesn't have the labels of the data set demo"):
        read_calibration(model, config("demo:train", samples=3), labelled=True)


def test_read_calibration_without_need_leaves_out_labels_of_other_classes(video_model, tmp_path):
    save_arrays(tmp_path / "a.npz", labels=np.full(20, 7))
    assert read_calibration(video_model, config(tmp_path / "a.npz"), labelled=False).labels is None
    with pytest.raises(ShallowvitError, match=r"labels of a.npz are 7 to 7, the model hf:.* has classes 0 to 4"):
        read_calibration(video_model, config(tmp_path / "a.npz"), labelled=True)


def test_read_calibration_for_the_oracle_draws_items_to_train_on_too(video_model, tmp_path):
    save_arrays(tmp_path / "a.npz", labels=np.arange(20) % 5)
    settings = config(tmp_path / "a.npz", "oracle", samples=5, finetune_items=10)
    assert len(read_calibration(video_model, settings, labelled=True)) == 15
    settings = config(tmp_path / "a.npz", "oracle", samples=5, finetune_items=20)
    with pytest.raises(ShallowvitError, match=r"oracle finetunes on 20 items .* a.npz holds 20; give more data or lower"):
        read_calibration(video_model, settings, labelled=True)


def test_read_calibration_refuses_arrays_without_labels_where_they_are_needed(video_model, tmp_path):
    save_arrays(tmp_path / "a.npz")
    with pytest.raises(ShallowvitError, match=r"a.npz can't be read as a .npz with frames and labels"):
        read_calibration(video_model, config(tmp_path / "a.npz"), labelled=True)


def test_read_calibration_refuses_items_of_another_size(video_model, tmp_path):
    save_arrays(tmp_path / "a.npz", frame=(4, 8, 8, 3))
    with pytest.raises(ShallowvitError, match=r"items of a.npz are \[4, 8, 8, 3\], the model hf:.* takes \[4, 16, 16, 3\]"):
        read_calibration(video_model, config(tmp_path / "a.npz"), labelled=False)


def test_read_calibration_refuses_a_missing_path(video_model, tmp_path):
    with pytest.raises(ShallowvitError, match=r"no data at .*gone; give 'demo', 'demo:train'"):
        read_calibration(video_model, config(tmp_path / "gone"), labelled=False)


def test_read_calibration_refuses_a_model_without_preprocessing(tmp_path):
    with pytest.raises(ShallowvitError, match=r"test:module comes without preprocessing settings .* or give a Calibration"):
        read_calibration(stacked(2), config("demo"), labelled=False)


def test_read_calibration_refuses_a_config_without_data(video_model):
    with pytest.raises(ShallowvitError, match=r"no data is named for block-influence; give a data set or a Calibration"):
        read_calibration(video_model, ScoreConfig("block-influence"), labelled=False)


def test_check_calibration_refuses_inputs_of_another_shape():
    data = Calibration("own", torch.zeros(3, 6, 8))
    with pytest.raises(ShallowvitError, match=r"inputs of own are torch.float32 \[3, 6, 8\], test:module takes .* \[N, 5, 8\]"):
        check_calibration(stacked(2), data, ScoreConfig("cka"))


@pytest.mark.parametrize("inputs", [torch.zeros(3, 5, 8, dtype=torch.uint8), torch.zeros(0, 5, 8)])
def test_check_calibration_refuses_whole_numbers_and_nothing(inputs):
    with pytest.raises(ShallowvitError, match=r"takes torch.float32 \[N, 5, 8\], N at least 1; preprocess them"):
        check_calibration(stacked(2), Calibration("own", inputs), ScoreConfig("cka"))


def test_check_calibration_refuses_nan():
    with pytest.raises(ShallowvitError, match=r"inputs of own hold NaN or Inf; remove those items"):
        check_calibration(stacked(2), Calibration("own", torch.full((1, 5, 8), torch.nan)), ScoreConfig("cka"))


def test_check_calibration_refuses_labels_of_another_number():
    data = Calibration("own", torch.zeros(3, 5, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShallowvitError, match=r"labels of own are torch.int64 \[2\]; expected torch.int64 \[3\]"):
        check_calibration(stacked(2), data, ScoreConfig("cka"))


def test_check_calibration_refuses_none():
    with pytest.raises(ShallowvitError, match=r"cka runs the model on inputs and got none; give data"):
        check_calibration(stacked(2), None, ScoreConfig("cka"))


def test_forward_arguments_repeats_the_rest_of_the_example(demo_source):
    model = shallowvit.load(f"{demo_source}:pretrained")
    data = Calibration("own", torch.randn(5, *model.input_spec.shape))
    parts = list(forward_arguments(model, data, 2))
    assert [len(part["bool_masked_pos"]) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["pixel_values"] for part in parts]), data.inputs)
    assert torch.equal(parts[0]["bool_masked_pos"][1], model.example["bool_masked_pos"][0])


def test_taker_of_names_the_model(video_model):
    taker = taker_of(video_model)
    assert (taker.name, taker.input.layout, taker.labels) == (video_model.origin.spec, "NTCHW", video_model.labels)
