"""Folders of image files: which files count, and what is said of other folders."""

from pathlib import Path
from unicodedata import normalize

import pytest
from torchvision.datasets import ImageFolder

from memtool import data
from memtool.data import folders


def test_other_files_and_hidden_files_do_not_count_and_are_told(
    tmp_path: Path, write, caplog
) -> None:
    write(tmp_path, "", 2)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant/.0.png").write_bytes(b"no")
    (tmp_path / "ant/notes.txt").write_text("no")
    (tmp_path / "bee/notes.txt").write_text("no")
    (tmp_path / "bee/LICENSE").write_text("no")
    (tmp_path / "readme.md").write_text("no")
    (tmp_path / "ant/deeper.png").mkdir()
    caplog.set_level("INFO", logger="memtool")
    assert len(data.load(f"folder:{tmp_path}").test) == 4
    (told,) = caplog.messages
    for part in (
        "hidden files: 2",
        ".txt files: 2",
        "files without a suffix: 1",
        f"files outside the folders of classes: 1 ({tmp_path / 'readme.md'})",
    ):
        assert part in told


def test_folders_within_a_class_count_in_the_order_of_imagefolder(
    tmp_path: Path, write, caplog
) -> None:
    for part in ("", "{}/b", "{}/a-x", "{}/a/deep", "{}/a"):
        for name in ("ant", "bee"):
            write(tmp_path / "tmp", name, 2, "JPEG")
            target = tmp_path / "images" / name / part.format("in")
            target.mkdir(parents=True, exist_ok=True)
            for file in (tmp_path / "tmp" / name / name).iterdir():
                file.rename(target / file.name)
    caplog.set_level("INFO", logger="memtool")
    found = folders.listed(str(tmp_path / "images"))
    expected = ImageFolder(tmp_path / "images")
    assert list(found.test.items) == [path for path, _ in expected.samples]
    assert found.test.labels.tolist() == expected.targets == [0] * 10 + [1] * 10
    assert not caplog.messages


def write_tiny(root: Path, picture) -> None:
    """Tiny ImageNet's layout: two classes, three training and two validation images each, and two
    test images."""
    for label, name in enumerate(("n01", "n02")):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t62\t62\n")
        for number in range(3):
            picture(4, 4, label).save(root / f"train/{name}/images/{name}_{number}.JPEG")
    for part, count in (("val", 4), ("test", 2)):
        (root / part / "images").mkdir(parents=True)
        for number in range(count):
            picture(4, 4, number).save(root / f"{part}/images/{part}_{number}.JPEG")
    lines = [f"val_{number}.JPEG\tn0{1 + number // 2}\t0\t0\t62\t62\n" for number in (3, 0, 2, 1)]
    (root / "val/val_annotations.txt").write_text("".join(lines))


def test_tiny_imagenet(tmp_path: Path, picture, caplog) -> None:
    write_tiny(tmp_path, picture)
    caplog.set_level("INFO", logger="memtool")
    found = data.load(f"folder:{tmp_path}", training=True)
    assert found.classes == ("n01", "n02")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == [0, 0, 1, 1]
    assert (found.test.images[3] == data.load(f"folder:{tmp_path}/val").test.images[3]).all()
    assert f"{tmp_path / 'test'}: its images have no labels" in caplog.text
    assert ".txt files: 2" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text + "val_9.JPEG\tn01\t0\n", "has no val_9.JPEG"),
        (lambda text: text.replace("n02", "n07"), "val_3.JPEG is of class 'n07', not in train"),
        (lambda text: text.replace("\t", " "), "line 1: is not a name and a class"),
        (lambda text: "", "is empty"),
    ],
    ids=["image missing", "unknown class", "no tabs", "empty"],
)
def test_annotations_that_do_not_fit_are_refused(
    tmp_path: Path, picture, refused, change, told: str
) -> None:
    write_tiny(tmp_path, picture)
    path = tmp_path / "val/val_annotations.txt"
    path.write_text(change(path.read_text()))
    assert told in refused(f"folder:{tmp_path}")


def test_images_that_annotations_leave_out_are_counted(tmp_path: Path, picture, caplog) -> None:
    write_tiny(tmp_path, picture)
    (tmp_path / "val/val_annotations.txt").write_text("val_1.JPEG\tn02\t0\n")
    caplog.set_level("INFO", logger="memtool")
    assert data.load(f"folder:{tmp_path}").test.labels.tolist() == [1]
    assert "images that are not in val_annotations.txt: 3" in caplog.text


def test_test_images_without_labels_alone_are_refused(tmp_path: Path, write, refused) -> None:
    write(tmp_path, "train", 1)
    (tmp_path / "test").mkdir()
    (tmp_path / "test/0.png").write_bytes((tmp_path / "train/ant/0.png").read_bytes())
    assert "images without labels" in refused(f"folder:{tmp_path}")


def test_a_folder_one_level_too_high_is_told(tmp_path: Path, write, refused, caplog) -> None:
    write(tmp_path / "photos", "", 1)
    assert data.load(f"folder:{tmp_path}").classes == ("photos",)
    assert f"say folder:{tmp_path / 'photos'}" in caplog.text
    write(tmp_path / "all/val", "", 1)
    assert f"name it itself (folder:{tmp_path / 'all/val'})" in refused(
        f"folder:{tmp_path / 'all'}"
    )


@pytest.mark.parametrize(
    ("parts", "is_told"),
    [
        (["apprentissage", "essai"], True),
        (["learn_set", "check_set/check_set", "train_small"], True),
        (["apprentissage"], False),  # of which is said that it is one class
    ],
)
def test_splits_whose_names_are_not_known_are_told_by_what_they_hold(
    tmp_path: Path, write, caplog, parts: list[str], is_told: bool
) -> None:
    for part in parts:
        write(tmp_path, part, 1)
    classes = [part.partition("/")[0] for part in sorted(parts)]
    assert list(folders.listed(str(tmp_path)).classes) == classes
    (told,) = caplog.messages
    assert (f"{', '.join(classes)}; if these are splits, rename them to" in told) == is_told
    assert ("(ant, bee)" in told) == is_told


@pytest.mark.parametrize("own", ["cat/0.png", "cat/day/0.png", "cat/ant/0.png"])
def test_classes_that_do_not_all_hold_the_same_folders_are_taken_as_they_are(
    tmp_path: Path, write, picture, caplog, own: str
) -> None:
    for part in ("dog", "emu"):
        write(tmp_path, part, 1)
    (tmp_path / own).parent.mkdir(parents=True)
    picture(4, 4, 0).save(tmp_path / own)
    assert folders.listed(str(tmp_path)).classes == ("cat", "dog", "emu")
    assert not caplog.messages


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


@pytest.mark.parametrize(
    "names", ["Train Test", "Training Testing", "training test", "TRAIN VAL extra"]
)
def test_splits_of_other_names_are_no_classes(tmp_path: Path, write, refused, names: str) -> None:
    train, test, *_ = names.split()
    for part in names.split():
        write(tmp_path, f"all/{part}", 2)
    for options in ("", "?split_at=50%"):
        told = refused(f"folder:{tmp_path / 'all'}{options}")
        assert f"rename {train} to train and {test} to test" in told
        assert f"folder:{tmp_path / 'all' / train} with --split-at 80%" in told


@pytest.mark.parametrize(
    ("train", "tests"),
    [
        ("train_images", ["test_images"]),
        ("Fruits-TRAIN", ["Fruits-VAL", "about"]),
        ("TrainingData", ["HiddenTest", "OpenTest"]),
        ("trainset", ["devset"]),
        ("my train/my train", ["my test/my test"]),
        ("old_train/images", ["old_val"]),
    ],
)
def test_splits_are_told_by_their_classes_too(
    tmp_path: Path, write, refused, train: str, tests: list[str]
) -> None:
    for part in (train, *tests):
        write(tmp_path, part, 1)
    told = refused(f"folder:{tmp_path}?split_at=50%")
    assert f"rename {train} to train and {tests[0]} to test" in told
    assert f"(folder:{tmp_path / train} with --split-at 80%)" in told


@pytest.mark.parametrize(
    "paths",
    [
        ["bullet_train/day", "bullet_train/night", "test_tube/day"],
        ["bullet_train/images", "test_tube/images"],
        ["bullet_train", "testbed"],
        ["terrain/day", "terrain/night", "latests/day", "latests/night"],
        ["train_of_steam/day", "train_of_steam/night", "tram/day", "tram/night"],
    ],
)
def test_classes_may_be_called_somewhat_like_splits(tmp_path: Path, picture, paths) -> None:
    for path in paths:
        (tmp_path / path).mkdir(parents=True)
        picture(4, 4, 0).save(tmp_path / path / "0.png")
    classes = sorted({path.partition("/")[0] for path in paths})
    assert list(folders.listed(str(tmp_path)).classes) == classes


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data-trn", "data-tst"),
        ("DigitsTraining", "DigitsEvaluation"),
        ("2019_train_split", "2020_hold_out_split"),
        ("trainval", "testdev"),
    ],
)
def test_names_alone_tell_splits_that_lack_classes(
    tmp_path: Path, write, refused, train: str, test: str
) -> None:
    write(tmp_path, train, 1)
    write(tmp_path, test, 1)
    (tmp_path / test / "ant").rename(tmp_path / train / "cow")
    told = refused(f"folder:{tmp_path}?split_at=50%")
    assert f"{tmp_path}: {', '.join(sorted((train, test)))} look like splits" in told
    assert f"rename {train} to train and {test} to test" in told


def test_splits_with_a_class_that_another_lacks(tmp_path: Path, write, refused) -> None:
    for part in ("Learning-train", "PublicTest"):
        write(tmp_path, part, 1)
    write(tmp_path, "Learning-train/cow", 1)
    assert "rename Learning-train to train and PublicTest to test" in refused(f"folder:{tmp_path}")


def test_folders_beside_the_splits_are_not_called_splits(tmp_path: Path, write, refused) -> None:
    for part in ("Training", "Testing", "about"):
        write(tmp_path, part, 1)
    told = refused(f"folder:{tmp_path}")
    assert "Testing, Training look like splits" in told
    assert told.endswith("; if they are classes, rename them without such words as train and test")


@pytest.mark.parametrize(
    "names",
    [
        ["trainer", "valve"],
        ["Trainers", "Developer", "Tester"],
        ["training_shoe", "sandal", "test_shoe_box"],
        ["train_été", "test", "hiver"],
        ["valid", "invalid"],
    ],
)
def test_classes_that_hold_the_same_folders_are_no_splits(tmp_path: Path, write, names) -> None:
    for name in names:
        write(tmp_path, name, 1)
    assert list(folders.listed(str(tmp_path)).classes) == sorted(names)


def test_splits_of_one_kind_alone_are_no_classes(tmp_path: Path, write, refused) -> None:
    for part in ("test_images", "val_images"):
        write(tmp_path, part, 1)
    told = refused(f"folder:{tmp_path}")
    assert f"no train; name it itself (folder:{tmp_path / 'test_images'}), or, if it is" in told


def test_a_class_called_train_is_told_the_way_out(tmp_path: Path, write, refused) -> None:
    for name in ("bus", "train"):
        write(tmp_path, name, 1)
    assert refused(f"folder:{tmp_path}").endswith("or, if it is a class, rename it")
    (tmp_path / "train").rename(tmp_path / "trains")
    assert folders.listed(str(tmp_path)).classes == ("bus", "trains")


@pytest.mark.parametrize("others", [["bus", "tram"], ["tramway", "test_tube"]])
def test_a_class_called_train_that_holds_images_alone_is_one(
    tmp_path: Path, picture, others: list[str]
) -> None:
    write_flat(tmp_path, picture, "train", *others)
    found = data.load(f"folder:{tmp_path}?split_at=50%", training=True)
    assert list(found.classes) == sorted(["train", *others])
    assert len(found.train) == len(found.test) == 3


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train", "valid", "bus"], "holds none; if it and valid are classes, rename them"),
        (["train", "Testing"], "rename train to train and Testing to test; if they are"),
        (["train"], "has train but no test; if it is a class, rename it"),
        (["Evaluation"], "has Evaluation but no train; if it is a class, rename it"),
    ],
)
def test_what_holds_no_folders_is_not_to_be_divided(
    tmp_path: Path, picture, refused, names: list[str], told: str
) -> None:
    write_flat(tmp_path, picture, *names)
    assert told in refused(f"folder:{tmp_path}")


def write_flat(root: Path, picture, *names: str) -> None:
    """Two images in each of these folders."""
    for name in names:
        (root / name).mkdir()
        for number in range(2):
            picture(4, 4, number).save(root / name / f"{number}.png")


def test_a_single_split_of_another_name_is_named_itself(tmp_path: Path, write, refused) -> None:
    write(tmp_path, "all/Training", 2)
    told = refused(f"folder:{tmp_path / 'all'}")
    assert f"no test; name it itself (folder:{tmp_path / 'all/Training'})" in told


def test_what_is_beside_the_splits_is_told(tmp_path: Path, write, caplog) -> None:
    for part in ("train", "test", "val", "extra"):
        write(tmp_path, part, 1)
    (tmp_path / "words.txt").write_text("no")
    caplog.set_level("INFO", logger="memtool")
    assert len(data.load(f"folder:{tmp_path}").test) == 2
    assert "folders beside train and test: 2 (" in caplog.text
    assert f"files beside train and test: 1 ({tmp_path / 'words.txt'})" in caplog.text


NFC, NFD = (normalize(form, "b\u00e9\u00e9") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_accents_may_be_encoded_in_two_ways(tmp_path: Path, write, train: str, test: str) -> None:
    for part, count, name in (("train", 3, train), ("test", 2, test)):
        write(tmp_path, part, count)
        (tmp_path / part / "bee").rename(tmp_path / part / name)
    found = data.load(f"folder:{tmp_path}")
    assert found.classes == ("ant", train)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC)])
def test_accents_in_annotations(tmp_path: Path, picture, listed: str, there: str) -> None:
    write_tiny(tmp_path, picture)
    (tmp_path / "train/n02").rename(tmp_path / "train" / there)
    (tmp_path / "val/images/val_1.JPEG").rename(tmp_path / f"val/images/{there}.JPEG")
    (tmp_path / "val/val_annotations.txt").write_text(f"{listed}.JPEG\t{listed}\t0\n")
    assert data.load(f"folder:{tmp_path}").test.labels.tolist() == [0 if there < "n01" else 1]


@pytest.mark.parametrize("part", ["train", "test"])
def test_two_classes_that_look_alike_are_refused(tmp_path: Path, write, refused, part: str) -> None:
    for name in ("train", "test"):
        write(tmp_path, name, 1)
    (tmp_path / part / "bee").rename(tmp_path / part / NFC)
    (tmp_path / part / "ant").rename(tmp_path / part / NFD)
    assert f"{part}: {NFC!r} is there in two encodings of its" in refused(f"folder:{tmp_path}")
