"""The forms of ``--data`` beside demo, arrays of frames and class folders: images by list, inputs, audio, retrieval, binary."""

import time
import wave

import numpy as np
import pytest
from tiny_bundles import IMAGE, write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.datasets import UnreadableError, check_dataset, open_dataset
from shallowvit_bench.datasets.audio import log_mel, read_wave
from shallowvit_bench.datasets.dataset import Dataset
from shallowvit_bench.datasets.images import split_line
from shallowvit_bench.datasets.specs import DataSpec, parse_spec
from shallowvit_bench.errors import BenchError

Image = pytest.importorskip("PIL.Image", reason="image folders need Pillow")

WORDS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"


def save_image(path, size=(8, 8), colour=(200, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def image_taker(tmp_path, labels):
    return read_bundle(write_bundle(tmp_path / "taker", **(IMAGE | {"labels": labels})))


def raw_taker(tmp_path, shape, dtype="float32", **changes):
    """A bundle that takes inputs as they are, without preprocessing settings."""
    graph = {"opset": 18, "precision": "fp32", "attention_nodes": 2, "outputs": []}
    graph["input"] = {"name": "x", "dtype": dtype, "layout": "NTF", "shape": shape}
    return read_bundle(write_bundle(tmp_path / "raw", **({"graph": graph, "preprocessing": None, "labels": None} | changes)))


def save_wave(path, samples, rate=16000, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(np.asarray(samples) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    packed = (whole + 128).astype(np.uint8)[:, None] if width == 1 else whole.view(np.uint8).reshape(-1, 4)[:, :width]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, width, rate, 0, "NONE", ""))
        file.writeframes(packed.tobytes())
    return path


def sweep(seconds=1.0, rate=16000):
    times = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, len(times))
    return (0.5 * np.sin(2 * np.pi * (100 + 1500 * times) * times) + noise).clip(-1, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo:train", ("demo", "demo:train", {}, False)),
        ("a folder?x=1", ("", "a folder?x=1", {}, False)),
        ("images:dir?classes=a%20b.txt", ("images", "dir", {"classes": "a b.txt"}, False)),
        ("binary:images:dir?list=l", ("images", "dir", {"list": "l"}, True)),
        ("binary:a.npz", ("", "a.npz", {}, True)),
    ],
)
def test_parse_spec_takes_form_path_and_options_apart(text, expected):
    parsed = parse_spec(text)
    assert (parsed.form, str(parsed.path), dict(parsed.options), parsed.binary) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("images:.?clases=x", r"images: takes no option 'clases'; its options are: classes, list"),
        ("market1501:.?root=x", r"market1501: takes no option 'root'; its options are: none"),
        ("images:.?", r"the options '' of images: name one twice or none"),
        ("ssv2:.?root=a&root=b", r"name one twice"),
        ("imagenet:.", r"no data at imagenet:.; give 'demo'.*images:\.\.\., kinetics:"),
        ("ssv2:.?root=gone", r"no folder gone, which root= names"),
        ("images:.?classes=gone.txt", r"no file gone.txt, which classes= names"),
        ("kinetics:.?stride=two", r"stride=two is no number"),
    ],
)
def test_check_dataset_rejects_what_it_does_not_know(text, match):
    with pytest.raises(BenchError, match=match):
        check_dataset(text)


def test_check_dataset_names_the_extra_of_videos(monkeypatch):
    monkeypatch.setattr("shallowvit_bench.datasets.specs.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"videos need PyAV.*pip install 'shallowvit\[video\]'"):
        check_dataset("kinetics:.")


def test_open_dataset_reads_imagenet_folders_by_wordnet_id(tmp_path):
    save_image(tmp_path / "val/n01443537/ILSVRC2012_val_00000236.JPEG", (30, 20))
    save_image(tmp_path / "val/n01440764/ILSVRC2012_val_00000293.JPEG")
    (tmp_path / "synset_words.txt").write_text(WORDS)
    taker = image_taker(tmp_path, ["tench, Tinca tinca", "goldfish, Carassius auratus"])
    dataset = open_dataset(f"images:{tmp_path}/val?classes={tmp_path}/synset_words.txt", taker)
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.items.name(1) == "n01443537/ILSVRC2012_val_00000236.JPEG"
    assert dataset.take([0, 1]).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("labels", [["goldfish, Carassius auratus", "tench, Tinca tinca"], ["goldfish", "tench"]])
def test_open_dataset_rejects_classes_in_another_order_than_the_labels(tmp_path, labels):
    save_image(tmp_path / "val/n01443537/a.JPEG")
    (tmp_path / "words.txt").write_text(WORDS)
    with pytest.raises(BenchError, match=r"words.txt has .* as class \d, the bundle taker has it as class \d"):
        open_dataset(f"images:{tmp_path}/val?classes={tmp_path}/words.txt", image_taker(tmp_path, labels))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", "", r"holds no classes"),
        ("a.txt", "cat\ndog\ncat\n", r"names the class cat twice"),
        ("a.json", "[1, 2]", r"is no JSON object of name to number"),
    ],
)
def test_open_dataset_rejects_a_file_of_classes_that_is_none(tmp_path, name, content, match):
    save_image(tmp_path / "val/cat/a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(BenchError, match=match):
        open_dataset(f"images:{tmp_path}/val?classes={tmp_path}/{name}", image_taker(tmp_path, ["cat", "dog"]))


def test_open_dataset_reads_a_flat_folder_with_a_list(tmp_path):
    save_image(tmp_path / "val/b.JPEG", colour=(9, 9, 9))
    save_image(tmp_path / "val/a.JPEG")
    (tmp_path / "val/val.txt").write_text("b.JPEG 1\na.JPEG 0\n")
    dataset = open_dataset(f"images:{tmp_path}/val?list=val.txt", image_taker(tmp_path, ["cat", "dog"]))
    assert dataset.labels.tolist() == [1, 0]
    assert np.all(np.abs(dataset.take([0])[0].astype(int) - 9) < 3)


def test_open_dataset_rejects_a_list_with_another_class(tmp_path):
    save_image(tmp_path / "val/a.JPEG")
    (tmp_path / "val/val.txt").write_text("a.JPEG 2\n")
    with pytest.raises(BenchError, match=r"labels of val are 2 to 2, the bundle taker has classes 0 to 1"):
        open_dataset(f"images:{tmp_path}/val?list=val.txt", image_taker(tmp_path, ["cat", "dog"]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/b.mp4 5", ("a/b.mp4", 5)),
        ("a b.mp4,5\n", ("a b.mp4", 5)),
        ("a, b.mp4 5", ("a, b.mp4", 5)),
        ("a.wav, dog bark", ("a.wav", "dog bark")),
        ("a.mp4\t7", ("a.mp4", 7)),
    ],
)
def test_split_line_takes_path_and_label_apart(tmp_path, line, expected):
    assert split_line(line, tmp_path) == expected


def test_read_hands_on_what_cannot_be_read_in_order(tmp_path):
    for number in range(40):
        save_image(tmp_path / f"val/cat/{number:02}.png", colour=(number, 0, 0))
    (tmp_path / "val/cat/07.png").write_bytes(b"no image")
    (tmp_path / "val/cat/30.png").write_bytes((tmp_path / "val/cat/31.png").read_bytes()[:45])
    dataset = open_dataset(str(tmp_path / "val"), image_taker(tmp_path, ["cat", "dog"]))
    found = list(dataset.read(range(40)))
    assert [item for item, _ in found] == list(range(40))
    assert [item for item, views in found if isinstance(views, UnreadableError)] == [7, 30]
    assert [int(views[0, 0, 0, 0]) for item, views in found if item not in (7, 30)] == [
        n for n in range(40) if n not in (7, 30)
    ]


def test_read_does_not_run_far_ahead_of_who_takes(tmp_path):
    class Large:
        in_memory = False
        begun = 0

        def __len__(self):
            return 1000

        def read(self, item):
            self.begun += 1
            return np.zeros((1, 30 << 20), np.uint8)

    items = Large()
    reading = Dataset("large", 1000, np.zeros(0, np.int64), items).read(range(1000))
    for _ in range(3):
        next(reading)
    time.sleep(0.2)  # what is to be read ahead has been by now
    reading.close()
    assert items.begun <= 3 + 8  # 256 MiB of 30 MiB each


def test_open_dataset_reads_inputs_as_the_graph_takes_them(tmp_path):
    inputs = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
    np.savez(tmp_path / "points.npz", inputs=inputs, labels=[2, 0, 1])
    dataset = open_dataset(str(tmp_path / "points.npz"), raw_taker(tmp_path, [6, 4]))
    assert (dataset.preprocessed, dataset.labels.tolist()) == (True, [2, 0, 1])
    np.testing.assert_array_equal(np.concatenate([views for _, views in dataset.read(range(3))]), inputs)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (np.zeros((2, 6, 5), np.float32), r"inputs of a.npz are float32 \[6, 5\], the bundle raw takes float32 \[6, 4\]"),
        (np.zeros((2, 6, 4), np.uint8), r"inputs of a.npz are uint8 \[6, 4\], the bundle raw takes float32"),
    ],
)
def test_open_dataset_rejects_inputs_of_another_form(tmp_path, inputs, match):
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=[0, 1])
    with pytest.raises(BenchError, match=match):
        open_dataset(str(tmp_path / "a.npz"), raw_taker(tmp_path, [6, 4]))


def test_open_dataset_rejects_frames_beside_inputs(tmp_path):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/a.npz", inputs=np.zeros((2, 8, 3, 16, 16), np.float32), labels=[0, 1])
    np.savez(tmp_path / "data/b.npz", frames=np.zeros((2, 8, 16, 16, 3), np.uint8), labels=[0, 1])
    with pytest.raises(BenchError, match=r"a.npz and .*b.npz differ in holding frames or inputs"):
        open_dataset(str(tmp_path / "data"), read_bundle(write_bundle(tmp_path / "tiny")))


def test_take_rejects_inputs(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=np.zeros((2, 6, 4), np.float32), labels=[0, 1])
    with pytest.raises(BenchError, match=r"a.npz holds inputs of the graph, expected frames here"):
        open_dataset(str(tmp_path / "a.npz"), raw_taker(tmp_path, [6, 4])).take([0])


@pytest.mark.parametrize("times", [98, 120, 60])
def test_log_mel_is_that_of_transformers(times):
    transformers = pytest.importorskip("transformers", reason="our filter bank is compared with that of its AST")
    extractor = transformers.ASTFeatureExtractor(max_length=times)
    samples = sweep().astype(np.float32)
    expected = extractor(samples, sampling_rate=16000, return_tensors="np")["input_values"][0]
    found = (log_mel(samples, times, 128) - extractor.mean) / (2 * extractor.std)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(("width", "error"), [(1, 0.01), (2, 1e-4), (3, 1e-6), (4, 1e-6)])
def test_read_wave_reads_pcm_of_any_width(tmp_path, width, error):
    samples = sweep(0.1)
    np.testing.assert_allclose(read_wave(save_wave(tmp_path / "a.wav", samples, width=width)), samples, atol=error)


def test_read_wave_resamples_to_the_rate_of_the_model(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    found = read_wave(save_wave(tmp_path / "a.wav", 0.5 * tone, rate=44100))
    assert len(found) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=2e-3)


def test_open_dataset_reads_a_list_of_sounds(tmp_path):
    save_wave(tmp_path / "wav/a.wav", sweep())
    (tmp_path / "wav/b.wav").write_bytes(b"no sound")
    (tmp_path / "list.csv").write_text("a.wav,dog bark\nb.wav,rain\n")
    taker = raw_taker(tmp_path, [50, 16], labels=["rain", "dog bark"])
    dataset = open_dataset(f"audio:{tmp_path}/list.csv?root={tmp_path}/wav&mean=-5&std=2", taker)
    (_, first), (_, second) = dataset.read([0, 1])
    np.testing.assert_allclose(first[0], (log_mel(read_wave(tmp_path / "wav/a.wav"), 50, 16) + 5) / 4, rtol=1e-6)
    assert dataset.labels.tolist() == [1, 0]
    assert "b.wav is no PCM .wav" in str(second)


def test_open_dataset_rejects_sounds_for_a_model_of_images(image_bundle, tmp_path):
    (tmp_path / "list.csv").write_text("a.wav,0\n")
    with pytest.raises(BenchError, match=r"takes \[3, 8, 8\], and audio: makes spectrograms"):
        open_dataset(f"audio:{tmp_path}/list.csv", read_bundle(image_bundle))


def test_open_dataset_reads_market1501(image_bundle, tmp_path):
    for name in ("0002_c1s1_000451_03.jpg", "0001_c3s1_001051_00.jpg"):
        save_image(tmp_path / "m/query" / name, (4, 8))
    for name in ("-1_c1s1_000401_03.jpg", "0000_c2s1_000151_01.jpg", "0001_c6s3_085317_00.jpg"):
        save_image(tmp_path / "m/bounding_box_test" / name, (4, 8))
    (tmp_path / "m/query/Thumbs.db").write_bytes(b"")
    dataset = open_dataset(f"market1501:{tmp_path}/m", read_bundle(image_bundle))
    assert (dataset.kind, dataset.labels.tolist(), dataset.cameras.tolist()) == ("retrieval", [1, 2, 0, 1], [3, 1, 2, 6])
    assert dataset.queries.tolist() == [True, True, False, False]


def test_open_dataset_rejects_a_folder_that_is_no_market1501(image_bundle, tmp_path):
    (tmp_path / "query").mkdir()
    with pytest.raises(BenchError, match=r"query holds no images named as 0001_c1s1_001051_00.jpg"):
        open_dataset(f"market1501:{tmp_path}", read_bundle(image_bundle))


def test_open_dataset_binary_takes_both_labels_and_nothing_else(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=np.zeros((3, 6, 4), np.float32), labels=[0, 1, 1])
    np.savez(tmp_path / "b.npz", inputs=np.zeros((3, 6, 4), np.float32), labels=[0, 2, 1])
    taker = raw_taker(tmp_path, [6, 4])
    assert open_dataset(f"binary:{tmp_path}/a.npz", taker).kind == "binary"
    with pytest.raises(BenchError, match=r"labels of b.npz are 0, 1, 2; binary: takes both 0 and 1"):
        open_dataset(f"binary:{tmp_path}/b.npz", taker)


def test_option_path_is_looked_for_beside_the_data(tmp_path):
    (tmp_path / "val.txt").write_text("")
    assert DataSpec("images", tmp_path, {"list": "val.txt"}).option_path("list") == tmp_path / "val.txt"
