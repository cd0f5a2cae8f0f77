import hashlib

import numpy as np
import pytest

from shallowvit_bench.demo_clips import CLIP_SHAPE, LABELS, demo_clips, draw_clips


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "a14a53cc8c1dc5752bb1eceb12ee6d26806ca91e4d86a12c59ceebf1e9395f36"),
        ("test", "b847366806d98208921b8875136db13abf4feda6c8603f9f877653534e26d25f"),
        ("validation", "d50c6b1461a58d77c26f3984883bcfc44f0347beff0db9a943fcb538fe0f9d75"),
        ("report", "2659af12cfe6e9020e3366704e91634dbb9c9ad8d17784298fb4aa362bebe423"),
    ],
)
def test_demo_clips_of_a_split_are_the_fixed_ones(split, expected):
    # every published accuracy is on these clips: should a release of numpy draw others, this must fail, not the figures drift
    clips = demo_clips(split, 1000)
    assert hashlib.sha256(clips.frames.tobytes() + clips.labels.tobytes()).hexdigest() == expected


def test_demo_clips_first_ones_do_not_depend_on_the_count():
    few, more = demo_clips("test", 3), demo_clips("test", 1500)
    assert np.array_equal(few.frames, more.frames[:3])
    assert np.array_equal(few.labels, more.labels[:3])
    assert few.frames.shape == (3, *CLIP_SHAPE)
    assert few.frames.dtype == np.uint8


def test_demo_clips_show_every_label():
    assert set(demo_clips("test").labels) == set(range(len(LABELS)))


def test_draw_clips_splits_draw_from_disjoint_images():
    from shallowvit_bench.demo_clips import _digits

    names = ("train", "test", "validation", "report")
    train, test, validation, report = (np.unique(_digits(split)[0].reshape(-1, 256), axis=0) for split in names)
    for one, other in ((train, test), (validation, report)):
        assert len(np.unique(np.concatenate([one, other]), axis=0)) == len(one) + len(other)
    assert np.array_equal(np.unique(np.concatenate([validation, report]), axis=0), test)


def test_draw_clips_moves_the_labelled_digit_in_the_labelled_direction():
    # without its paper, noise and second digit a clip is its brightest channel; its motion is the shift that aligns its ends
    clips = draw_clips(np.random.default_rng(0), 200)
    right = 0
    for frames, label in zip(clips.frames, clips.labels, strict=True):
        bright = frames.astype(float).max(axis=-1)
        first, second = (np.maximum(bright[t] - np.percentile(bright[t], 80), 0) for t in (0, 2))
        shifts = {name: np.roll(first, shift, axis) for name, shift, axis in
                  (("left", -2, 1), ("right", 2, 1), ("up", -2, 0), ("down", 2, 0))}  # fmt: skip
        best = max(shifts, key=lambda name: float((shifts[name] * second).sum()))
        right += LABELS[label].endswith(best)
    assert right > 150


@pytest.mark.parametrize(("split", "count", "message"), [("val", 1, "choose from train, test"), ("test", 2001, "holds 2000")])
def test_demo_clips_refuses_what_there_is_not(split, count, message):
    with pytest.raises(ValueError, match=message):
        demo_clips(split, count)
