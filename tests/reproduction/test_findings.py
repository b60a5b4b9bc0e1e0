"""Findings: the formulas, and that the digits show what the paper says."""

import dataclasses

import pytest

from memtool import tables
from memtool.reproduction import FIGURES, RECIPES, Study
from memtool.reproduction.findings import mean, spearman


def test_spearman_is_that_of_the_ranks():
    assert spearman([1, 2, 3, 4], [10, 20, 25, 300]) == pytest.approx(1)
    # Without ties it is 1 - 6 sum(d^2) / (n (n^2 - 1)); the ranks differ by 1, 1, 0, 0 here.
    assert spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(1 - 6 * 2 / 60)


def test_a_mean_is_over_the_rows_that_meet_the_conditions():
    rows = [{"a": 1, "y": 2.0}, {"a": 1, "y": 4.0}, {"a": 1, "y": None}, {"a": 2, "y": 9.0}]
    assert mean(rows, "y", a=1) == 3
    assert mean(rows, "y", a=3) != mean(rows, "y", a=3)  # NaN: there are none


@pytest.mark.slow
def test_the_digits_show_what_the_paper_says(run, tmp_path, monkeypatch):
    """Seven of the nine noise ratios: so many that two neighbors may change places in a rank
    correlation of .95."""
    fewer = dataclasses.replace(RECIPES[Study.digits], ratios=(0, 10, 20, 25, 37.5, 50, 67.5))
    monkeypatch.setitem(RECIPES, Study.digits, fewer)
    out = tmp_path / "out"

    def reproduce(*arguments):
        result = run("reproduce", "digits", "-o", out, *arguments)
        assert result.code == 0, result.stderr
        return result

    first = reproduce("-j", 2)
    (tmp_path / "findings.csv").write_text(first.stdout)
    rows = tables.read(tmp_path / "findings.csv")
    assert len(rows) == 15
    assert [row for row in rows if not row["holds"]] == []
    trained = [line for line in first.stderr.splitlines() if line.startswith("train r")]
    assert len(trained) == len(fewer.ratios)
    for stem in FIGURES.values():
        assert (out / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")

    second = reproduce()
    assert second.stdout == first.stdout
    assert "train r0" not in second.stderr
    assert reproduce("--dry-run").stdout == ""
