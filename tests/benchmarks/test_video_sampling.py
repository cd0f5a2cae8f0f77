import pytest

from shallowvit_bench.datasets.sampling import Views, clip_indices, slid_corner, views_from_text
from shallowvit_bench.errors import BenchError


def test_clip_indices_dense_segments_start_evenly_spread():
    assert clip_indices(100, 4, Views(3, 1, "dense", 10)) == [[0, 10, 20, 30], [30, 40, 50, 60], [60, 70, 80, 90]]


def test_clip_indices_of_videomae_on_kinetics():
    # 300 frames at stride 4 are 75; 59 of them are room for clips of 16; 59 / 4 is 14.75
    clips = clip_indices(300, 16, Views(5, 3, "dense", 4))
    assert [clip[0] // 4 for clip in clips] == [0, 14, 29, 44, 59]
    assert clips[4] == list(range(236, 300, 4))


def test_clip_indices_dense_stands_still_at_the_end_of_a_short_video():
    assert clip_indices(10, 5, Views(2, 1, "dense", 4)) == [[0, 4, 8, 8, 8]] * 2


def test_clip_indices_dense_takes_the_middle_for_one_segment():
    assert clip_indices(101, 3, Views(1, 1, "dense", 10)) == [[40, 50, 60]]


def test_clip_indices_uniform_divides_the_video():
    assert clip_indices(40, 4, Views(2, 1, "uniform")) == [[0, 10, 20, 30], [5, 15, 25, 35]]
    assert clip_indices(40, 4, Views(1, 1, "uniform")) == [[5, 15, 25, 35]]


@pytest.mark.parametrize("frames", [1, 9, 16, 37, 53, 117])
def test_clip_indices_uniform_is_the_published_rule_of_something_something(frames):
    # the starts and the middles of 16 parts, sorted; every other one is a clip
    part = frames / 16
    both = sorted([int(part / 2 + part * x) for x in range(16)] + [int(part * x) for x in range(16)])
    assert clip_indices(frames, 16, Views(2, 3, "uniform")) == [both[0::2], both[1::2]]


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 63, 64, 65, 301])
def test_clip_indices_stay_within_the_video(sampling, frames):
    clips = clip_indices(frames, 16, Views(5, 1, sampling, 4))
    assert [len(clip) for clip in clips] == [16] * 5
    assert all(clip == sorted(clip) and clip[0] >= 0 and clip[-1] < frames for clip in clips)


def test_slid_corner_slides_along_the_longer_side():
    # 340 x 256 at a shorter side of 224 is 297 wide: 73 to slide along
    assert [slid_corner((224, 297), (224, 224), crop, 3) for crop in range(3)] == [(0, 0), (0, 36), (0, 73)]
    assert [slid_corner((297, 224), (224, 224), crop, 3) for crop in range(3)] == [(0, 0), (36, 0), (73, 0)]


def test_slid_corner_centres_what_is_left_of_the_shorter_side():
    assert slid_corner((256, 340), (224, 224), 2, 3) == (16, 116)


@pytest.mark.parametrize(
    ("views", "sampling", "stride", "match"),
    [
        ("5", "dense", 4, r"views=5 isn't segments x crops"),
        ("0x3", "dense", 4, r"views=0x3 isn't segments x crops"),
        ("5x3", "random", 4, r"sampling=random is unknown; choose from dense, uniform"),
        ("5x3", "dense", 0, r"stride=0 must be 1 or more"),
    ],
)
def test_views_from_text_rejects_what_names_no_views(views, sampling, stride, match):
    with pytest.raises(BenchError, match=match):
        views_from_text(views, sampling, stride)
