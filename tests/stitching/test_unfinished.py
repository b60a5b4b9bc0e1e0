"""The rows of a sweep that was stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.stitching.unfinished import Unfinished
from memtool.tables import StitchingRow, columns

SETTINGS = {"epochs": 1}


def row(number):
    return dict.fromkeys(columns(StitchingRow)) | {"seed": number}


@pytest.fixture
def networks(runs):
    return [Checkpoint.open(runs.clean), Checkpoint.open(runs.noisy)]


def stopped(table, networks, rows):
    """A sweep of three rows per cut that kept so many rows and was stopped."""
    with pytest.raises(KeyboardInterrupt):
        with Unfinished.beside(table, SETTINGS, networks, 3, resume=False) as unfinished:
            for number in range(rows):
                unfinished.keep(row(number))
            raise KeyboardInterrupt
    return table.with_name("t.csv.partial")


@pytest.mark.parametrize(("kept", "back"), [(0, 0), (2, 0), (3, 3), (7, 6)])
def test_the_rows_of_whole_cuts_come_back(tmp_path, networks, kept, back):
    table = tmp_path / "t.csv"
    partial = stopped(table, networks, kept)
    assert partial.exists() == bool(kept)  # nothing is left of a sweep that did nothing
    with Unfinished.beside(table, SETTINGS, networks, 3, resume=True) as unfinished:
        assert unfinished.rows == [row(number) for number in range(back)]
        unfinished.keep(row(99))
        lines = partial.read_text().splitlines()
        assert len(lines) == 1 + back + 1 and json.loads(lines[-1]) == row(99)
    assert not partial.exists()


def test_half_a_line_is_not_counted(tmp_path, networks):
    partial = stopped(tmp_path / "t.csv", networks, 3)
    with open(partial, "a") as file:
        file.write(f'{json.dumps(row(3))}\n{json.dumps(row(4))}\n{{"ro')
    with Unfinished.beside(tmp_path / "t.csv", SETTINGS, networks, 3, resume=True) as unfinished:
        assert len(unfinished.rows) == 3


def test_without_resume_a_sweep_begins_anew(tmp_path, networks):
    stopped(tmp_path / "t.csv", networks, 3)
    with Unfinished.beside(tmp_path / "t.csv", SETTINGS, networks, 3, resume=False) as unfinished:
        assert unfinished.rows == []


def test_other_settings_or_networks_are_refused(tmp_path, networks):
    table = tmp_path / "t.csv"
    partial = stopped(table, networks, 3)
    for settings, some in (
        ({"epochs": 2}, networks),
        (SETTINGS, networks[:1]),
        (SETTINGS, networks[::-1]),  # the cuts of the first one are done
    ):
        with pytest.raises(MemtoolError, match="t.csv.partial: is of a sweep with other settings"):
            with Unfinished.beside(table, settings, some, 3, resume=True):
                pass
    assert partial.exists()  # it is still there to go on from


def test_when_a_network_was_trained_anew_the_sweep_starts_anew(tmp_path, runs):
    """Whatever follows from that: another model has other cuts."""
    names = [tmp_path / name for name in ("r50.safetensors", "r0.safetensors")]
    for name, source in zip(names, (runs.noisy, runs.clean), strict=True):
        shutil.copy(source, name)
    table = tmp_path / "t.csv"
    stopped(table, [Checkpoint.open(name) for name in names], 3)
    shutil.copy(runs.clean, names[0])
    networks = [Checkpoint.open(name) for name in names]
    with Unfinished.beside(table, {"epochs": 1, "cuts": ["x"]}, networks, 3, True) as unfinished:
        assert unfinished.rows == []
        unfinished.keep(row(1))


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "{}", '{"row": 1}', "[1]", json.dumps({**row(0), "seed": "x"}), "\0"]
)
def test_a_damaged_file_is_refused(tmp_path, networks, line):
    partial = stopped(tmp_path / "t.csv", networks, 3)
    with open(partial, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(MemtoolError, match="t.csv.partial: is damaged"):
        with Unfinished.beside(tmp_path / "t.csv", SETTINGS, networks, 3, resume=True):
            pass


@pytest.mark.parametrize("table", [None, "/dev/null"])
def test_nothing_is_kept_beside_what_is_no_file(tmp_path, networks, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = None if table is None else tmp_path.__class__(table)
    with Unfinished.beside(path, SETTINGS, networks, 3, resume=True) as unfinished:
        unfinished.keep(row(0))
        assert unfinished.rows == []
    assert list(tmp_path.iterdir()) == []


def test_the_rows_of_a_sweep_at_work_are_not_taken_away(tmp_path, networks):
    table = tmp_path / "t.csv"
    begin = (
        "import sys; from pathlib import Path\n"
        "from memtool import MemtoolError\n"
        "from memtool.stitching.unfinished import Unfinished\n"
        "try:\n"
        "    with Unfinished.beside(Path(sys.argv[1]), {}, [], 3, resume=False): print('began')\n"
        "except MemtoolError as error: print(error)\n"
    )
    with Unfinished.beside(table, SETTINGS, networks, 3, resume=False) as unfinished:
        unfinished.keep(row(0))
        command = [sys.executable, "-c", begin, str(table)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"process {os.getpid()} on" in done.stdout
        lines = table.with_name("t.csv.partial").read_text().splitlines()
        assert json.loads(lines[-1]) == row(0)


def test_a_sweep_goes_on_where_it_was_moved_to_and_by_other_paths(tmp_path, runs, monkeypatch):
    def networks(folder):
        return [Checkpoint.open(folder / name) for name in ("r50.safetensors", "r0.safetensors")]

    def rows(folder):
        front, back = (str(one.path) for one in networks(folder))
        names = {"front": front, "back": back, "stitched": str(folder / "kept" / "x")}
        return [row(0) | names, row(0) | names | {"stitched": None}]

    monkeypatch.chdir(tmp_path)
    here, moved = Path("here"), Path("moved")
    (here / "kept").mkdir(parents=True)
    (here / "kept" / "x").touch()
    shutil.copy(runs.noisy, here / "r50.safetensors")
    shutil.copy(runs.clean, here / "r0.safetensors")
    table, resume = here / "t.csv", True
    with pytest.raises(KeyboardInterrupt):
        with Unfinished.beside(
            table, SETTINGS, networks(here), 1, False, here / "kept"
        ) as unfinished:
            for one in rows(here):
                unfinished.keep(one)
            raise KeyboardInterrupt
    here.rename(moved)
    for folder in (moved, tmp_path / "moved", moved):
        with pytest.raises(KeyboardInterrupt):
            with Unfinished.beside(
                folder / "t.csv", SETTINGS, networks(folder), 1, resume, folder / "kept"
            ) as unfinished:
                assert unfinished.rows == rows(folder)
                raise KeyboardInterrupt


def test_a_cut_whose_stitched_model_is_gone_is_done_again(tmp_path, networks):
    (tmp_path / "there").touch()
    with pytest.raises(KeyboardInterrupt):
        with Unfinished.beside(tmp_path / "t.csv", SETTINGS, networks, 1, False) as unfinished:
            for number, name in enumerate(("there", "gone", "there")):
                unfinished.keep({**row(number), "stitched": str(tmp_path / name)})
            raise KeyboardInterrupt
    with Unfinished.beside(tmp_path / "t.csv", SETTINGS, networks, 1, resume=True) as unfinished:
        assert [one["seed"] for one in unfinished.rows] == [row(0)["seed"]]
