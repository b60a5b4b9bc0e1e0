"""The steps of a reproduction as rules in the language of make: the one description of them, from
which `steps.py` expands the steps and `makefile.py` prints the Makefile.

In a rule `%`, and `$*` in its command, stand for the name of a run, such as r25-s0 for a noise
ratio of 25 % and seed 0. `$(NAME)` is one of the recipe's choices or of FUNCTIONS; `$<`, `$^` and
`$@` are the first file that is needed, all of them, and the file that is made, if there is but one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memtool.tables import CkaRow, StitchingRow, TrainingRow


@dataclass(frozen=True)
class Table:
    """The tables of a kind: `tables/NAME-RUN.csv` for each run that the variable `runs` lists."""

    name: str
    runs: str
    row_type: type

    @property
    def glob(self) -> str:
        """The names of the files of all runs."""
        return f"{self.name}-{'ceiling-' if self.runs == 'CEILINGS' else 'r'}*.csv"


TABLES = {
    "training": Table("training", "RUNS", TrainingRow),
    "cka": Table("cka", "RUNS", CkaRow),
    "ceiling": Table("cka", "CEILINGS", CkaRow),  # of the second clean networks
    "stitching": Table("stitching", "RUNS", StitchingRow),
    "supplement": Table("supplement", "SUPPLEMENTS", CkaRow),
}

# Names that depend on the run or the model, or stand for files of all runs, and what make takes
# them from.
FUNCTIONS = {
    "ratio": "$(patsubst r%,%,$(firstword $(subst -s, ,$*)))",
    "seed": "$(lastword $(subst -s, ,$*))",
    "clean": "$(DIR)/runs/r0-s$(seed).safetensors",
    "samples": "$(SAMPLES:%=--samples %)",
    "trust": "$(if $(findstring .py:,$(MODEL)),--trust)",
    "before": "$(filter-out $(shell printf %04d $(EPOCHS)),$(SAVED))",  # the last epoch
    "saved": "$(before:%=$(DIR)/runs/$*/epoch-%.safetensors)",
    **{kind: f"$({t.runs}:%=$(DIR)/tables/{t.name}-%.csv)" for kind, t in TABLES.items()},
}


@dataclass(frozen=True)
class Rule:
    """How the files `makes` are made from those that it `needs`, for all that `%` stands for; what
    else the command leaves, done or stopped, matches the globs in `leaves`."""

    kind: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]
    command: str
    leaves: tuple[str, ...] = ()


TRAINING = (
    "train --model '$(MODEL)' --data '$(DATA)' --labels $< --epochs $(EPOCHS) --save-at '$(before)'"
    " $(TRAIN) --seed $(seed)"
)
LABELS = Rule(
    kind="labels",
    makes=("$(DIR)/labels/%.safetensors",),
    needs=(),
    command="make-noisy '$(DATA)' -r $(ratio)% --seed $(seed) -q -o $@",
)
TRAIN = Rule(
    kind="train",
    makes=("$(DIR)/runs/%.safetensors", "$(DIR)/tables/training-%.csv"),
    needs=("$(DIR)/labels/%.safetensors",),
    command=f"{TRAINING} -q --resume --table $(DIR)/tables/training-$*.csv"
    " -o $(DIR)/runs/$*.safetensors",
    leaves=("$(DIR)/runs/%.state.safetensors", "$(DIR)/runs/%/epoch-*.safetensors"),
)
# A second clean network, with equal initial weights and another order of batches, for each seed,
# which % stands for: what is no less like the first one has not diverged.
CEILING = Rule(
    kind="train",
    makes=("$(DIR)/runs/ceiling-s%.safetensors", "$(DIR)/tables/training-ceiling-s%.csv"),
    needs=("$(DIR)/labels/r0-s%.safetensors",),
    command=f"{TRAINING} --order-seed 1$(seed) -q --resume"
    " --table $(DIR)/tables/training-ceiling-s$*.csv -o $(DIR)/runs/ceiling-s$*.safetensors",
    leaves=tuple(glob.replace("%", "ceiling-s%") for glob in TRAIN.leaves),
)
CKA = Rule(
    kind="cka",
    makes=("$(DIR)/tables/cka-%.csv",),
    needs=("$(DIR)/runs/%.safetensors", "$(clean)"),
    command="cka $(saved) $< --reference $< --reference $(clean)"
    " --layers '$(LAYERS)' $(CKA) $(samples) $(trust) -q -o $@",
)
STITCHING = Rule(
    kind="stitching",
    makes=("$(DIR)/tables/stitching-%.csv",),
    needs=("$(DIR)/runs/%.safetensors", "$(clean)"),
    command="stitch $< $(clean) --at '$(CUTS)' --both --control $(STITCH) $(trust) --seed $(seed)"
    " --save $(DIR)/stitched/$* -q --resume -o $@",
    leaves=("$(DIR)/tables/stitching-%.csv.partial", "$(DIR)/stitched/%/*.safetensors"),
)
SUPPLEMENT = Rule(
    kind="supplement",
    makes=("$(DIR)/tables/supplement-%.csv",),
    needs=("$(DIR)/tables/stitching-%.csv", "$(clean)"),
    command="cka $< --reference $(clean) --layers '$(LAYERS)' $(CKA) $(samples) $(trust) -q -o $@",
)
RUN_RULES = (LABELS, TRAIN, CKA, STITCHING, SUPPLEMENT)


@dataclass(frozen=True)
class Plot:
    """What a figure shows: its kind, the kinds of tables that it is drawn from, and its options."""

    kind: str
    tables: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


PLOTS = {
    "figure1-convergence": Plot("convergence", ("cka",)),
    "figure2-stitching": Plot("stitching", ("stitching",)),
    "figure3-divergence": Plot("divergence", ("cka", "ceiling")),
    "divergence-final": Plot("divergence", ("cka", "ceiling"), {"x": "layer", "epochs": "last"}),
    "supplement": Plot("supplement", ("supplement", "cka")),
    "training": Plot("training", ("training",)),
}


def _figure(name: str, plot: Plot) -> Rule:
    """What `memtool plot` makes of tables; % is the folder of the reproduction."""
    files = tuple(f"%/{name}{suffix}" for suffix in (".csv", ".pdf", ".png"))
    options = "".join(f" --{option} {value}" for option, value in plot.options.items())
    outputs = " ".join(f"-o {file.replace('%', '$*')}" for file in files)
    needs = tuple(f"$({table})" for table in plot.tables)
    command = f"plot {plot.kind}{options} $^ {outputs}"
    return Rule(kind=name, makes=files, needs=needs, command=command)


FIGURES = tuple(_figure(name, plot) for name, plot in PLOTS.items())
