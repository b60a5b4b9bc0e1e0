"""The steps of a reproduction as rules in the language of make: the one description of them, from
which `steps.py` expands the steps and `makefile.py` prints the Makefile.

In a rule `%`, and `$*` in its command, stand for the name of a run, such as r25-s0 for a noise
ratio of 25 % and seed 0. `$(NAME)` is one of the recipe's choices or of FUNCTIONS; `$<`, `$^` and
`$@` are the first file that is needed, all of them, and the file that is made, if there is but one.
"""

from dataclasses import dataclass

# Names that depend on the run or the model, or stand for files of all runs, and what make takes
# them from.
FUNCTIONS = {
    "ratio": "$(patsubst r%,%,$(firstword $(subst -s, ,$*)))",
    "seed": "$(lastword $(subst -s, ,$*))",
    "clean": "$(DIR)/runs/r0-s$(seed).safetensors",
    "trust": "$(if $(findstring .py:,$(MODEL)),--trust)",
    "before": "$(filter-out $(shell printf %04d $(EPOCHS)),$(SAVED))",  # the last epoch
    "saved": "$(before:%=$(DIR)/runs/$*/epoch-%.safetensors)",
    "training": "$(RUNS:%=$(DIR)/tables/training-%.csv)",
    "cka": "$(RUNS:%=$(DIR)/tables/cka-%.csv)",
    "ceiling": "$(CEILINGS:%=$(DIR)/tables/cka-%.csv)",
    "stitching": "$(RUNS:%=$(DIR)/tables/stitching-%.csv)",
    "supplement": "$(SUPPLEMENTS:%=$(DIR)/tables/supplement-%.csv)",
}


@dataclass(frozen=True)
class Rule:
    """How the files `makes` are made from those that it `needs`, for all that `%` stands for."""

    kind: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]
    command: str


TRAINING = (
    "train --model '$(MODEL)' --data '$(DATA)' --labels $< --epochs $(EPOCHS) --save-at '$(before)'"
    " $(TRAIN) --seed $(seed)"
)
LABELS = Rule(
    "labels",
    ("$(DIR)/labels/%.safetensors",),
    (),
    "make-noisy '$(DATA)' -r $(ratio)% --seed $(seed) -q -o $@",
)
TRAIN = Rule(
    "train",
    ("$(DIR)/runs/%.safetensors", "$(DIR)/tables/training-%.csv"),
    ("$(DIR)/labels/%.safetensors",),
    f"{TRAINING} -q --resume --table $(DIR)/tables/training-$*.csv -o $(DIR)/runs/$*.safetensors",
)
# A second clean network, with equal initial weights and another order of batches, for each seed,
# which % stands for: what is no less like the first one has not diverged.
CEILING = Rule(
    "train",
    ("$(DIR)/runs/ceiling-s%.safetensors", "$(DIR)/tables/training-ceiling-s%.csv"),
    ("$(DIR)/labels/r0-s%.safetensors",),
    f"{TRAINING} --order-seed 1$(seed) -q --resume"
    " --table $(DIR)/tables/training-ceiling-s$*.csv -o $(DIR)/runs/ceiling-s$*.safetensors",
)
CKA = Rule(
    "cka",
    ("$(DIR)/tables/cka-%.csv",),
    ("$(DIR)/runs/%.safetensors", "$(clean)"),
    "cka $(saved) $< --reference $< --reference $(clean)"
    " --layers '$(LAYERS)' $(CKA) $(trust) -q -o $@",
)
STITCHING = Rule(
    "stitching",
    ("$(DIR)/tables/stitching-%.csv",),
    ("$(DIR)/runs/%.safetensors", "$(clean)"),
    "stitch $< $(clean) --at '$(CUTS)' --both --control $(STITCH) $(trust) --seed $(seed)"
    " --save $(DIR)/stitched/$* -q --resume -o $@",
)
SUPPLEMENT = Rule(
    "supplement",
    ("$(DIR)/tables/supplement-%.csv",),
    ("$(DIR)/tables/stitching-%.csv", "$(clean)"),
    "cka $< $(DIR)/runs/$*.safetensors --reference $(clean)"
    " --layers '$(LAYERS)' $(CKA) $(trust) -q -o $@",
)
RUN_RULES = (LABELS, TRAIN, CKA, STITCHING, SUPPLEMENT)


def _figure(name: str, plot: str, *tables: str) -> Rule:
    """What `memtool plot` makes of tables; % is the folder of the reproduction."""
    files = tuple(f"%/{name}{suffix}" for suffix in (".csv", ".pdf", ".png"))
    outputs = " ".join(f"-o {file.replace('%', '$*')}" for file in files)
    return Rule(name, files, tuple(f"$({table})" for table in tables), f"plot {plot} $^ {outputs}")


FIGURES = (
    _figure("figure1-convergence", "convergence", "cka"),
    _figure("figure2-stitching", "stitching", "stitching"),
    _figure("figure3-divergence", "divergence", "cka", "ceiling"),
    _figure("divergence-final", "divergence --x layer --epochs last", "cka", "ceiling"),
    _figure("supplement", "supplement", "supplement"),
    _figure("training", "training", "training"),
)
