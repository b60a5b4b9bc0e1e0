"""Findings: verdicts on tables with known answers, intervals, what is missing, and the digits."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest

from memtool import MemtoolError, tables
from memtool.reproduction import FIGURES, RECIPES, Study, measure_findings
from memtool.reproduction.claims import CLAIMS

from ..benchmarks.digits import expectations, tables_of_runs
from .examples import World


def findings(world, **replaced):
    """The findings by their claims; `replaced` are other rows than those of the world."""
    rows = {"training": world.training(), "cka": world.cka(), "stitching": world.stitching()}
    return {row["claim"]: row for row in measure_findings(**{**rows, **replaced})}


def verdicts(found):
    return {claim: row["verdict"] for claim, row in found.items()}


def flat(value):
    return lambda *_: value


def at_end(value):
    """Divergence that is 1 until the last epoch, and `value(r, d)` there."""
    return lambda r, d, e, s: value(r, d) if e == 8 else 1.0


# For each claim: the number in the World where it holds, and worlds where it does not or is
# undecided, with the number there. By hand: of six layers the first third is at d = 0 and .2, the
# last at .8 and 1, whose means are .1 and .9; the third, half of the network, is at .4; the largest
# r is .5.
CASES = {
    "every noise ratio is learned in full": (
        1,
        ({"given": lambda r, s: 1 - r / 5}, 0.9),
        ({"given": lambda r, s: 1 - r / 20}, 0.975),
    ),
    "test accuracy falls with r": (
        -1,
        ({"tested": flat(0.9)}, 0),
        ({"tested": lambda r, s: {0.0: 0.8, 0.25: 0.9, 0.5: 0.7}[r]}, -0.5),
    ),
    "early layers converge alike whatever r is": (
        0.025,
        ({"convergence": lambda r, d, e, s: 1 - r}, 0.5),
        ({"convergence": lambda r, d, e, s: 1 - 0.15 * r}, 0.075),
    ),
    "deep layers converge more slowly the larger r is": (
        -1,
        ({"convergence": lambda r, d, e, s: 0.5 + r * d}, 1),
        ({"convergence": lambda r, d, e, s: {0.0: 0.8, 0.25: 0.9, 0.5: 0.7}[r]}, -0.5),
    ),
    "the deeper a layer, the more noise slows its convergence": (
        1,
        ({"convergence": lambda r, d, e, s: 1 - r * (1 - d)}, -1),
        ({"convergence": lambda r, d, e, s: 1 - r * d * (1.3 - d)}, 0.6),
    ),
    "CKA to the clean model peaks early in deep layers": (
        0.25,
        ({"divergence": lambda r, d, e, s: e / 8}, 1),
        ({"divergence": lambda r, d, e, s: 1 - abs(e - 5) / 9, "epochs": (1, 5, 8)}, 0.625),
    ),
    "CKA to the clean model then falls in deep layers": (
        0.36,
        ({"divergence": lambda r, d, e, s: e / 8}, 0),
        ({"divergence": at_end(lambda r, d: 1 - 0.08 * d)}, 0.072),
    ),
    "CKA to the clean model falls more the larger r is": (
        1,
        ({"divergence": at_end(lambda r, d: r), "ceiling": lambda d, e, s: float(e != 8)}, -1),
        ({"divergence": at_end(lambda r, d: {0.25: 0.7, 0.5: 0.8}[r])}, 0.5),
    ),
    "CKA to the clean model falls more the deeper the layer": (
        1,
        ({"divergence": at_end(lambda r, d: d)}, -1),
        ({"divergence": at_end(lambda r, d: 1 - d * (1.3 - d))}, 0.6),
    ),
    "early layers stay as in another clean network": (
        0.04 - 0.002,
        ({"divergence": at_end(lambda r, d: 0.7)}, 0.298),
        ({"divergence": at_end(lambda r, d: 0.92)}, 0.078),
    ),
    "deep layers diverge beyond what another clean network does": (
        0.36 - 0.018,
        ({"ceiling": lambda d, e, s: 1 - 0.4 * d}, 0),
        ({"ceiling": lambda d, e, s: 1 - 0.32 * d}, 0.072),
    ),
    "a noisy front costs a clean back little at early cuts": (
        0.02,
        ({"drop": lambda r, d, s: r}, 0.5),
        ({"drop": lambda r, d, s: 0.14 * r}, 0.07),
    ),
    "a noisy front costs a clean back much at late cuts": (
        0.18,
        ({"drop": flat(0.0)}, 0),
        ({"drop": lambda r, d, s: 0.14 * r}, 0.07),
    ),
    "a clean front of half the depth repairs more than the control": (
        0.16,
        ({"gain": lambda r, d, s: -0.1}, -0.1),
        ({"gain": flat(0.07)}, 0.07),
    ),
    "nothing is gained by a clean front at the earliest cut": (
        0,
        ({"gain": lambda r, d, s: r * (1 - d)}, 0.5),
        ({"gain": flat(0.07)}, 0.07),
    ),
}


def test_every_claim_has_its_cases():
    assert [claim.claim for claim in CLAIMS] == list(CASES)


@pytest.mark.parametrize("claim", CASES)
def test_a_claim_holds_does_not_or_is_undecided(claim):
    value, (fails, value_failing), (undecided, value_undecided) = CASES[claim]
    expected = {
        "holds": (World(), value),
        "does not": (World(**fails), value_failing),
        "undecided": (World(**undecided), value_undecided),
    }
    for verdict, (world, number) in expected.items():
        row = findings(world)[claim]
        assert row["value"] == pytest.approx(number, abs=1e-9)
        assert row["verdict"] == verdict
        assert f"{row['value']:.3g} (one seed: no interval)" in row["why"]
        assert (row["low"], row["high"], row["seeds"]) == (None, None, 1)


def test_a_sentence_says_why():
    why = {row["verdict"]: row["why"] for row in findings(World(gain=flat(0.07))).values()}
    assert why["undecided"] == (
        "0.07 (one seed: no interval) is not clearly at most 0.05, nor at least 0.1"
    )
    world = World(seeds=(0, 1), drop=lambda r, d, s: (0.9 + 0.2 * s) * r)
    row = findings(world)["a noisy front costs a clean back little at early cuts"]
    assert row["why"] == "0.5 (95% interval 0.45 to 0.55, 2 seeds) is at least 0.1"
    assert row["measure"].endswith("first third of the cuts, r = 50%")


def test_seeds_that_disagree_leave_a_claim_undecided():
    claim = "a noisy front costs a clean back much at late cuts"
    world = World(seeds=(0, 1, 2), drop=lambda r, d, s: (0.1 + 0.2 * s) * r)
    row = findings(world)[claim]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.15, 0.05, 0.25))
    assert row["verdict"] == "undecided"
    alike = World(seeds=(0, 1, 2), drop=lambda r, d, s: (0.22 + 0.02 * s) * r)
    assert findings(alike)[claim]["verdict"] == "holds"


def test_the_interval_is_that_of_all_ways_to_draw_seeds():
    values = [0.2, 0.5, 0.6, 0.1, 0.4]
    world = World(seeds=(0, 1, 2, 3, 4), drop=lambda r, d, s: 2 * values[s] * r)
    row = findings(world)["a noisy front costs a clean back much at late cuts"]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=5)]
    expected = np.percentile(means, [2.5, 97.5])
    assert [row["low"], row["high"]] == pytest.approx(expected, abs=0.02)
    again = findings(world)["a noisy front costs a clean back much at late cuts"]
    assert again == row


def test_the_order_of_rows_makes_no_difference():
    world = World(seeds=(0, 1, 2), tested=lambda r, s: 0.9 - r + 0.01 * s)
    pairs = {}  # layers stay in order
    for row in world.cka():
        pairs.setdefault((row["checkpoint"], row["reference"]), []).append(row)
    groups = list(pairs.values())
    random.Random(0).shuffle(groups)
    training, models = world.training(), {}
    random.Random(1).shuffle(training)
    for row in world.stitching():
        key = row["direction"], row["front_noise_ratio"], row["back_noise_ratio"], row["front_seed"]
        models.setdefault(key, []).append(row)
    mixed = findings(
        world,
        training=training,
        cka=[row for group in groups for row in group],
        stitching=[row for group in reversed(models.values()) for row in group],
    )
    assert mixed == findings(world)
    assert findings(world, cka=[*world.cka(), *world.cka()]) == mixed


def test_stitched_models_pairs_of_layers_and_unknown_networks_do_not_count():
    world = World()
    row = world.cka()[0]
    others = [
        {**row, "front_layer": "stem", "cka": 0.1},
        {**row, "reference_layer": "neck", "cka": 0.1},
        {**row, "noise_ratio": None, "cka": 0.1},
        {**row, "epoch": None, "cka": 0.1},
    ]
    stitched = [{**row, "epoch": 2, "test_accuracy": 0.0} for row in world.stitching()]
    assert findings(world, cka=[*world.cka(), *others]) == findings(world)
    assert findings(world, stitching=[*stitched, *world.stitching()]) == findings(world)


def test_shortcuts_and_repeated_tensors_are_no_depth():
    world = World()

    def with_others(row):
        """The row, with those of two layers around it that are at no other depth."""
        first, last = row["layer"] == "stem", row["layer"] == "<head>"
        name = "stem.downsample" if first else "<head>.out" if last else None
        other = {"layer": name, "reference_layer": name, "cka": row["cka"] if last else 0.3}
        return [row, {**row, **other, "same_as": "<head>" if last else None}] if name else [row]

    rows = [one for row in world.cka() for one in with_others(row)]
    assert len({row["layer"] for row in rows}) == len(world.layers) + 2
    assert findings(world, cka=rows) == findings(world)


MISSING = {
    "no table at all": (
        {"training": [], "cka": [], "stitching": []},
        {
            "no accuracy on the given labels in the tables",
            "no test accuracy in the tables",
            "no CKA to the final model of the same run in the tables",
            "no CKA to the final clean model in the tables",
            "no second clean network to compare with",
            "no accuracy of noisy fronts on a clean back in the tables",
            "no accuracy of clean fronts on noisy backs in the tables",
        },
    ),
    "no stitching": (
        {"stitching": []},
        {
            "no accuracy of noisy fronts on a clean back in the tables",
            "no accuracy of clean fronts on noisy backs in the tables",
        },
    ),
    "no control": (
        {"stitching": [{**row, "control_accuracy": None} for row in World().stitching()]},
        {"no control: stitch with --control"},
    ),
    "no clean front": (
        {
            "stitching": [
                row
                for row in World().stitching()
                if (row["front_noise_ratio"], row["back_noise_ratio"]) != (0, 0)
            ]
        },
        {"no clean front on a clean back, which shows what the stitching layer costs"},
    ),
    "no test accuracy": (
        {"training": [{**row, "test_accuracy": None} for row in World().training()]},
        {"no test accuracy in the tables"},
    ),
    "a run that ends earlier": (
        {"training": [r for r in World().training() if (r["noise_ratio"], r["epoch"]) != (0.5, 8)]},
        {"runs end at different epochs, from 4 to 8"},
    ),
    "no second clean network": (
        {"cka": World(ceiling=None).cka()},
        {
            "no second clean network to compare with",
            "a rank correlation with r needs three noise ratios, not 2",
        },
    ),
}


@pytest.mark.parametrize("part", MISSING)
def test_what_is_missing_is_undecided_and_says_why(part):
    replaced, reasons = MISSING[part]
    found = findings(World(), **replaced)
    empty = [row for row in found.values() if row["value"] is None]
    assert {row["why"] for row in empty} == reasons
    assert {(row["verdict"], row["low"], row["high"]) for row in empty} == {
        ("undecided", None, None)
    }
    assert all(row["verdict"] == "holds" for row in found.values() if row not in empty)


FEW = {
    "one noise ratio": {"ratios": (0.5,)},
    "the clean model alone": {"ratios": (0.0,)},
    "one layer": {"layers": ("conv",)},
    "two layers": {"layers": ("conv", "fc")},
    "one epoch": {"epochs": (8,)},
    "an unknown seed": {"seeds": (None,)},
}


@pytest.mark.parametrize("few", FEW)
def test_whatever_there_is_little_of_every_claim_has_a_row_and_a_reason(few):
    found = findings(World(**FEW[few]))
    assert list(found) == list(CASES)
    assert all(row["why"] for row in found.values())
    if few == "an unknown seed":
        assert verdicts(found) == dict.fromkeys(CASES, "holds")
    else:
        assert any(row["value"] is None for row in found.values())


def test_runs_that_not_all_seeds_have_are_left_out_and_named():
    world = World(seeds=(0, 1), ratios=(0.0, 0.25, 0.5, 0.75))
    training = [r for r in world.training() if (r["seed"], r["noise_ratio"]) != (1, 0.75)]
    row = findings(world, training=training)["test accuracy falls with r"]
    assert row["verdict"] == "holds"
    assert row["why"].endswith("; left out, since not all runs have it: r 75%")
    cka = [{**r, "cka": None} if r["layer"] == "neck" else r for r in world.cka()]
    row = findings(world, cka=cka)["deep layers converge more slowly the larger r is"]
    assert row["why"].endswith("; left out, since not all runs have it: layer neck")


def test_a_clean_run_may_have_a_label_file_or_none():
    world = World(seeds=(0, 1))

    def with_noise(row, has_file):
        found = {}
        for end in ("", "reference_", "front_", "back_"):
            if (ratio := row.get(f"{end}noise_ratio")) is not None:
                kind, seed = ("uniform", 7) if ratio or has_file else (None, None)
                found |= {f"{end}noise_kind": kind, f"{end}noise_seed": seed}
        return row | found

    def told(*seeds):
        """The findings where the clean runs of these seeds have a label file."""
        tables = {"training": world.training(), "cka": world.cka(), "stitching": world.stitching()}
        seed = {"training": "seed", "cka": "reference_seed", "stitching": "back_seed"}
        return findings(
            world,
            **{
                name: [with_noise(row, row[seed[name]] in seeds) for row in rows]
                for name, rows in tables.items()
            },
        )

    assert told() == told(0) == told(0, 1) == findings(world)


def test_what_cannot_be_compared_is_refused():
    world = World()
    mixed = [*world.cka(), {**world.cka()[0], "estimator": "minibatch"}]
    with pytest.raises(MemtoolError, match=r"differ in estimator \(exact, minibatch\)"):
        findings(world, cka=mixed)
    twice = [*world.cka(), {**world.cka()[0], "cka": 0.25}]
    with pytest.raises(MemtoolError, match=r"two values of CKA .* \(1.0 and 0.25\) for seed 0"):
        findings(world, cka=twice)
    with pytest.raises(MemtoolError, match="has no column noise_ratio, seed, given_accuracy"):
        findings(world, training=[{"epoch": 1}])


@pytest.mark.slow
def test_the_digits_show_what_the_paper_says(run, tmp_path, monkeypatch):
    """Seven of the nine noise ratios: so many that two neighbors may change places in a rank
    correlation of .95; one of them in the supplement, which no finding depends on."""
    fewer = dataclasses.replace(
        RECIPES[Study.digits], ratios=(0, 10, 20, 25, 37.5, 50, 67.5), supplement=(67.5,)
    )
    monkeypatch.setitem(RECIPES, Study.digits, fewer)
    out = tmp_path / "out"

    def reproduce(*arguments):
        result = run("reproduce", "digits", "-o", out, *arguments)
        assert result.code == 0, result.stderr
        return result

    first = reproduce("-j", 2)
    expected = expectations(*tables_of_runs(out))
    assert len(expected) == 15
    assert [row for row in expected if not row["holds"]] == []
    assert (out / "findings.csv").read_text() == first.stdout
    found = {row["claim"]: row["verdict"] for row in tables.read(out / "findings.csv")}
    assert list(found) == list(CASES)
    # On the digits the control does not explain all that a clean front gains at the first cut.
    unsure = {claim for claim in found if "earliest cut" in claim}
    assert {claim for claim, verdict in found.items() if verdict != "holds"} <= unsure
    trained = [line for line in first.stderr.splitlines() if line.startswith("train r")]
    assert len(trained) == len(fewer.ratios)
    for rule in FIGURES:
        assert (out / f"{rule.kind}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{rule.kind}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "reproduction.json").read_text())["ratios"] == list(fewer.ratios)
    assert "<svg" in (out / "report.html").read_text()

    second = reproduce()
    assert second.stdout == first.stdout
    assert "train r0" not in second.stderr
    assert reproduce("--dry-run").stdout == ""
