import ctypes
import errno
import os
import subprocess

import pytest

from shallowvit import ShallowvitError, files
from shallowvit.files import check_out, folder_when_whole, hash_file, only_one

OURS = '{"schema_version": 1, "source": {}, "plan": {}}'


def _write(out, text="new", force=False):
    with folder_when_whole(out, "export", force) as folder:
        (folder / "manifest.json").write_text(OURS)
        (folder / "text").write_text(text)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_when_whole_good_end_leaves_the_folder_alone(tmp_path):
    _write(tmp_path / "out")
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["manifest.json", "text"]


def test_folder_when_whole_before_the_end_has_no_final_name(tmp_path):
    with folder_when_whole(tmp_path / "out", "export") as folder:
        assert folder.is_dir()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_folder_when_whole_interrupted_leaves_nothing(tmp_path, error):
    with pytest.raises(error), folder_when_whole(tmp_path / "out", "export") as folder:
        (folder / "half").write_text("half")
        raise error
    assert _names(tmp_path) == []


def test_folder_when_whole_interrupted_under_force_leaves_the_old_one(tmp_path):
    _write(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), folder_when_whole(tmp_path / "out", "export", force=True):
        raise KeyboardInterrupt
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out/text").read_text() == "old"


def test_folder_when_whole_interrupted_between_renames_leaves_the_old_one(tmp_path, monkeypatch):
    _write(tmp_path / "out", "old")
    rename = files.Path.rename

    def interrupted(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(files.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "out", force=True)
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out/text").read_text() == "old"


def test_folder_when_whole_force_replaces_whole(tmp_path):
    _write(tmp_path / "out", "old")
    (tmp_path / "out/extra").touch()
    _write(tmp_path / "out", "new", force=True)
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["manifest.json", "text"]
    assert (tmp_path / "out/text").read_text() == "new"


def test_check_out_existing_folder_raises(tmp_path):
    _write(tmp_path / "out")
    with pytest.raises(ShallowvitError, match="out exists; choose another --out or replace it whole with --force"):
        check_out(tmp_path / "out", force=False, stage="export")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_check_out_force_refuses_what_is_no_folder(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        _write(tmp_path / "ours")
        out.symlink_to(tmp_path / "ours")
    with pytest.raises(ShallowvitError, match="is not a folder, so --force leaves it"):
        check_out(out, force=True, stage="export")


@pytest.mark.parametrize("prefix", ["", "hf:", "timm:"])
def test_check_out_force_refuses_the_source(tmp_path, prefix):
    (tmp_path / "model").mkdir()
    with pytest.raises(ShallowvitError, match="is the source itself, so --force leaves it"):
        check_out(tmp_path / "model", force=True, stage="prune", source=f"{prefix}{tmp_path / 'model'}")


def test_check_out_force_refuses_a_folder_that_holds_the_working_one(tmp_path, monkeypatch):
    (tmp_path / "out/inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out/inside")
    with pytest.raises(ShallowvitError, match="is or holds the working folder"):
        check_out(tmp_path / "out", force=True, stage="export")


def test_check_out_force_refuses_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ShallowvitError, match="is or holds your home"):
        check_out(tmp_path, force=True, stage="export")


def test_check_out_force_refuses_a_git_working_tree(tmp_path):
    (tmp_path / "out/.git").mkdir(parents=True)
    with pytest.raises(ShallowvitError, match="is a git working tree"):
        check_out(tmp_path / "out", force=True, stage="export")


def test_check_out_force_takes_any_other_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note").touch()
    assert check_out(tmp_path / "out", force=True, stage="export") is None


def test_check_out_no_parent_folder_raises(tmp_path):
    with pytest.raises(ShallowvitError, match=r"no folder .*missing to write out into; create it first"):
        check_out(tmp_path / "missing/out", force=False, stage="prune")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, which only root may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs a tmpfs, which this user may not mount here")
    yield disk
    ctypes.CDLL(None).umount2(str(disk).encode(), 2)  # lazily, even if a file is still open


def test_folder_when_whole_full_disk_raises_and_leaves_nothing(small_disk):
    with pytest.raises(ShallowvitError, match=r"export: no space left for .*out .*nothing was changed"):
        _write(small_disk / "out", "x" * 200_000)
    assert _names(small_disk) == []


def test_save_pruned_full_disk_raises_and_leaves_nothing(small_disk, pruned_video):
    from shallowvit import save_pruned

    with pytest.raises(ShallowvitError, match="prune: no space left"):
        save_pruned(pruned_video, small_disk / "out")
    assert _names(small_disk) == []


def test_export_full_disk_raises_and_leaves_nothing(small_disk, pruned_video):
    from shallowvit import export

    with pytest.raises(ShallowvitError, match="export: no space left"):
        export(pruned_video, small_disk / "out")
    assert _names(small_disk) == []


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "may not write"), (errno.EROFS, "may not write")]
)
def test_folder_when_whole_system_error_is_told(tmp_path, code, message):
    with pytest.raises(ShallowvitError, match=message), folder_when_whole(tmp_path / "out", "export"):
        raise OSError(code, os.strerror(code))
    assert _names(tmp_path) == []


def test_folder_when_whole_other_system_error_keeps_its_kind(tmp_path):
    with pytest.raises(OSError, match="Too many open files"), folder_when_whole(tmp_path / "out", "export"):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_hash_file_is_sha256(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_only_one_keeps_another_out_until_it_ends_and_leaves_nothing(tmp_path):
    folder = tmp_path / "work"
    with only_one(folder, "tune"):
        told = r"tune: another command works in .*work; wait until it ends"
        with pytest.raises(ShallowvitError, match=told), only_one(folder, "tune"):
            pass
        (folder / "kept").touch()
    with only_one(folder, "tune"):
        pass
    assert _names(folder) == ["kept"]
    with only_one(tmp_path / "other", "tune"):
        pass
    assert _names(tmp_path) == ["work"]


def test_only_one_removes_what_a_killed_process_had_half_written(tmp_path):
    for name in (".checkpoint.pt.4711.partial", "checkpoint.pt", ".mine.partial"):
        (tmp_path / name).touch()
    with only_one(tmp_path, "recover"):
        assert _names(tmp_path) == [".lock", ".mine.partial", "checkpoint.pt"]


def test_only_one_in_a_folder_that_goes_away_is_left_alone(tmp_path):
    with only_one(tmp_path / "work", "recover"):
        (tmp_path / "work" / ".lock").unlink()
        (tmp_path / "work").rmdir()
