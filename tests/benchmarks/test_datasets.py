import numpy as np
import pytest
from tiny_bundles import IMAGE, write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.datasets import check_dataset, open_dataset
from shallowvit_bench.demo_clips import demo_clips
from shallowvit_bench.errors import BenchError

Image = pytest.importorskip("PIL.Image", reason="image folders need Pillow")


def save_arrays(path, frames=None, labels=None):
    frames = np.zeros((3, 8, 16, 16, 3), np.uint8) if frames is None else frames
    labels = np.arange(len(frames)) if labels is None else labels
    np.savez(path, frames=frames, labels=labels)
    return path


def save_image(path, size, colour=(200, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_open_dataset_demo_is_the_test_split(bundle):
    dataset = open_dataset("demo", read_bundle(bundle))
    assert dataset.count == 2000
    np.testing.assert_array_equal(next(dataset.batches(5)), demo_clips("test", 5).frames)


def test_open_dataset_demo_rejects_a_bundle_with_other_labels(tmp_path):
    info = read_bundle(write_bundle(tmp_path / "other", labels=["a", "b"]))
    with pytest.raises(BenchError, match=r"other doesn't have the labels of the data set demo"):
        open_dataset("demo", info)


def test_open_dataset_demo_train_is_the_train_split(bundle):
    dataset = open_dataset("demo:train", read_bundle(bundle), enough=300)
    clips = demo_clips("train", 300)
    np.testing.assert_array_equal(dataset.take(range(300)), clips.frames)
    np.testing.assert_array_equal(dataset.labels, clips.labels)


def test_open_dataset_demo_makes_no_more_than_the_split_has(bundle):
    assert open_dataset("demo", read_bundle(bundle), enough=3_000).count == 2000


def test_open_dataset_without_labels_takes_demo_for_any_classes(tmp_path):
    info = read_bundle(write_bundle(tmp_path / "other", labels=["a", "b"]))
    dataset = open_dataset("demo", info, labelled=False, enough=3)
    assert (dataset.count, len(dataset.labels)) == (3, 0)


def test_open_dataset_without_labels_keeps_those_that_fit(bundle, tmp_path):
    file = save_arrays(tmp_path / "a.npz", labels=np.array([5, 0, 39]))
    assert open_dataset(str(file), read_bundle(bundle), labelled=False).labels.tolist() == [5, 0, 39]


@pytest.mark.parametrize("labels", [np.array([0, 1, 40]), None])
def test_open_dataset_without_labels_leaves_out_what_does_not_fit(bundle, tmp_path, labels):
    frames = np.zeros((3, 8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", frames=frames, **({} if labels is None else {"labels": labels}))
    dataset = open_dataset(str(tmp_path / "a.npz"), read_bundle(bundle), labelled=False)
    assert (dataset.count, len(dataset.labels)) == (3, 0)


def test_open_dataset_without_labels_leaves_them_out_where_a_file_lacks_them(bundle, tmp_path):
    (tmp_path / "data").mkdir()
    save_arrays(tmp_path / "data" / "a.npz")
    np.savez(tmp_path / "data" / "b.npz", frames=np.zeros((2, 8, 16, 16, 3), np.uint8))
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(bundle), labelled=False)
    assert (dataset.count, len(dataset.labels)) == (5, 0)


def test_open_dataset_without_labels_reads_a_flat_folder_of_images(image_bundle, tmp_path):
    save_image(tmp_path / "data" / "b.png", (8, 8), (9, 9, 9))
    save_image(tmp_path / "data" / "a.png", (8, 8))
    (tmp_path / "data" / "notes.txt").write_text("no image")
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(image_bundle), labelled=False)
    assert dataset.take([1, 0])[:, 0, 0].tolist() == [[9, 9, 9], [200, 10, 10]]
    assert len(dataset.labels) == 0


def test_open_dataset_without_labels_reads_folders_of_other_classes(image_bundle, tmp_path):
    save_image(tmp_path / "data" / "bird" / "a.png", (8, 8))
    save_image(tmp_path / "data" / "cat" / "a.png", (8, 8))
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(image_bundle), labelled=False)
    assert (dataset.count, len(dataset.labels)) == (2, 0)


def test_open_dataset_rejects_a_flat_folder_where_labels_are_needed(image_bundle, tmp_path):
    save_image(tmp_path / "data" / "a.png", (8, 8))
    with pytest.raises(BenchError, match=r"holds no .npz files and no class folders with .png or .jpg images"):
        open_dataset(str(tmp_path / "data"), read_bundle(image_bundle))


def test_open_dataset_without_labels_rejects_an_empty_folder(image_bundle, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(BenchError, match=r"holds no .npz files and no .png or .jpg images in it or in folders"):
        open_dataset(str(tmp_path / "data"), read_bundle(image_bundle), labelled=False)


def test_take_reads_across_files_in_the_order_asked_for(bundle, tmp_path):
    (tmp_path / "data").mkdir()
    frames = np.arange(7, dtype=np.uint8)[:, None, None, None, None] + np.zeros((7, 8, 16, 16, 3), np.uint8)
    save_arrays(tmp_path / "data" / "a.npz", frames[:3])
    save_arrays(tmp_path / "data" / "b.npz", frames[3:])
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(bundle))
    assert dataset.take([6, 0, 3, 2])[:, 0, 0, 0, 0].tolist() == [6, 0, 3, 2]


def test_open_dataset_reads_a_folder_of_arrays_in_order(bundle, tmp_path):
    (tmp_path / "data").mkdir()
    save_arrays(tmp_path / "data" / "a.npz", labels=np.array([1, 2, 3]))
    save_arrays(tmp_path / "data" / "b.npz", labels=np.array([4, 5, 6], np.uint8))
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(bundle))
    assert dataset.labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert [len(frames) for frames in dataset.batches(4)] == [4, 2]


def test_check_dataset_rejects_a_missing_path(tmp_path):
    with pytest.raises(BenchError, match=r"no data at .*gone; give 'demo'"):
        check_dataset(str(tmp_path / "gone"))


def test_open_dataset_rejects_items_of_another_size(bundle, tmp_path):
    file = save_arrays(tmp_path / "a.npz", np.zeros((2, 4, 16, 16, 3), np.uint8))
    with pytest.raises(BenchError, match=r"items of a.npz are \[4, 16, 16, 3\].*takes \[8, 16, 16, 3\]"):
        open_dataset(str(file), read_bundle(bundle))


@pytest.mark.parametrize(("frames", "labels"), [("float32", "int64"), ("uint8", "float32")])
def test_open_dataset_rejects_other_types(bundle, tmp_path, frames, labels):
    file = save_arrays(tmp_path / "a.npz", np.zeros((2, 8, 16, 16, 3), frames), np.zeros(2, labels))
    with pytest.raises(BenchError, match=rf"has frames {frames} .* and labels {labels} .*expected uint8"):
        open_dataset(str(file), read_bundle(bundle))


def test_open_dataset_rejects_a_label_out_of_range(bundle, tmp_path):
    file = save_arrays(tmp_path / "a.npz", labels=np.array([0, 1, 40]))
    with pytest.raises(BenchError, match=r"labels of a.npz are 0 to 40, the bundle tiny has classes 0 to 39"):
        open_dataset(str(file), read_bundle(bundle))


def test_open_dataset_rejects_a_file_that_is_no_npz(bundle, tmp_path):
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(BenchError, match=r"can't be read as a .npz with frames and labels"):
        open_dataset(str(tmp_path / "a.npz"), read_bundle(bundle))


def test_open_dataset_rejects_arrays_without_labels(bundle, tmp_path):
    np.savez(tmp_path / "a.npz", frames=np.zeros((1, 8, 16, 16, 3), np.uint8))
    with pytest.raises(BenchError, match=r"can't be read as a .npz with frames and labels"):
        open_dataset(str(tmp_path / "a.npz"), read_bundle(bundle))


def test_open_dataset_rejects_a_bundle_without_preprocessing(tmp_path):
    info = read_bundle(write_bundle(tmp_path / "raw", preprocessing=None))
    with pytest.raises(BenchError, match=r"raw has no preprocessing settings"):
        open_dataset("demo", info)


def test_open_dataset_reads_images_resized_and_cropped(image_bundle, tmp_path):
    save_image(tmp_path / "data" / "cat" / "a.png", (20, 40))
    save_image(tmp_path / "data" / "dog" / "b.JPG", (8, 8), (9, 9, 9))
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(image_bundle))
    (frames,) = dataset.batches(8)
    assert dataset.labels.tolist() == [0, 1]
    assert frames.shape == (2, 8, 8, 3)
    assert frames[0, 0, 0].tolist() == [200, 10, 10]


def test_open_dataset_rejects_an_unknown_class(image_bundle, tmp_path):
    save_image(tmp_path / "data" / "bird" / "a.png", (8, 8))
    with pytest.raises(
        BenchError, match=r"the classes bird of .* are no labels of the bundle image; its labels begin cat, dog"
    ):
        open_dataset(str(tmp_path / "data"), read_bundle(image_bundle))


def test_open_dataset_rejects_images_for_a_video_bundle(bundle, tmp_path):
    save_image(tmp_path / "data" / "cat" / "a.png", (8, 8))
    with pytest.raises(BenchError, match=r"holds images, but the bundle tiny takes video \(NTCHW\)"):
        open_dataset(str(tmp_path / "data"), read_bundle(bundle))


def test_open_dataset_rejects_an_empty_folder(image_bundle, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(BenchError, match=r"holds no .npz files and no class folders"):
        open_dataset(str(tmp_path / "data"), read_bundle(image_bundle))


def test_batches_names_a_broken_image(image_bundle, tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "a.png").write_bytes(b"no image")
    dataset = open_dataset(str(tmp_path / "data"), read_bundle(image_bundle))
    with pytest.raises(BenchError, match=r"a.png can't be read as an image"):
        next(dataset.batches(1))


def test_batches_rejects_an_image_that_cannot_get_the_right_size(tmp_path):
    settings = IMAGE["preprocessing"] | {"resize": None, "crop": None}
    info = read_bundle(write_bundle(tmp_path / "fixed", **(IMAGE | {"preprocessing": settings})))
    save_image(tmp_path / "data" / "cat" / "a.png", (20, 40))
    with pytest.raises(BenchError, match=r"a.png is 40 x 20 and .* make it 40 x 20, but it takes 8 x 8"):
        next(open_dataset(str(tmp_path / "data"), info).batches(1))
