"""Folders of image files: which files count, and what is said of other folders."""

from pathlib import Path

from memtool import data


def test_other_files_hidden_files_and_deeper_folders_do_not_count(tmp_path: Path, write) -> None:
    write(tmp_path, "", 2)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant/.0.png").write_bytes(b"no")
    (tmp_path / "ant/notes.txt").write_text("no")
    (tmp_path / "ant/deeper.png").mkdir()
    assert len(data.load(f"folder:{tmp_path}").test) == 4


def test_a_class_without_images_is_an_error_in_training_only(
    tmp_path: Path, write, refused
) -> None:
    write(tmp_path, "train", 1)
    write(tmp_path, "test", 1)
    (tmp_path / "test/bee/0.png").unlink()
    assert len(data.load(f"folder:{tmp_path}").test) == 1
    (tmp_path / "train/cat").mkdir()
    assert "train/cat: holds no images" in refused(f"folder:{tmp_path}")


def test_folders_of_another_form_are_explained(tmp_path: Path, write, refused) -> None:
    assert "no such folder" in refused(f"folder:{tmp_path}/none")
    assert "one folder for each class" in refused(f"folder:{tmp_path}")
    write(tmp_path, "train", 1)
    assert "--split-at" in refused(f"folder:{tmp_path}")
    write(tmp_path / "test", "cow", 1)
    assert "class 'cow' is not in" in refused(f"folder:{tmp_path}")


def test_links_in_a_circle_end(tmp_path: Path, write, refused) -> None:
    write(tmp_path, "train", 1)
    write(tmp_path, "test", 1)
    (tmp_path / "self").symlink_to("self")
    assert "no such folder" in refused(f"folder:{tmp_path}/self")
    (tmp_path / "train/ant/1.png").symlink_to("1.png")
    assert "1 of 5 images" in refused(f"folder:{tmp_path}")
    (tmp_path / "train/ant/1.png").unlink()
    (tmp_path / "train/ant/up").symlink_to("..")
    assert len(data.load(f"folder:{tmp_path}").train) == 2
    (tmp_path / "train/loop").symlink_to("..")
    assert "train/loop: holds no images" in refused(f"folder:{tmp_path}")
