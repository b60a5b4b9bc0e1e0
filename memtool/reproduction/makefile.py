"""The rules of a reproduction as a Makefile, short and made to be changed."""

import shlex
from pathlib import Path

from memtool import MemtoolError
from memtool.errors import printable
from memtool.reproduction.recipes import ENVIRONMENT, Recipe
from memtool.reproduction.rules import CEILING, FIGURES, FUNCTIONS, RUN_RULES, TABLES, Rule
from memtool.reproduction.steps import variables

HEAD = """\
# Made by memtool reproduce --makefile: the same steps, for make -j N. Change what you like; make
# does not see such changes by itself. Its last command does, once all is made, and runs here what
# depends on them, and what makes the tables that make has made anew since it ended, which do not
# tell by which options. For make to run that, remove it first, and $(DIR)/steps.csv: without that
# file, the command refuses networks that were trained before a change, and takes tables for those
# of what is chosen.
# Over several machines: make -j 8 MEMTOOL='srun -G1 memtool'
# RATIOS and SUPPLEMENT are in percent, SAVED are epochs of four digits, with spaces between them.
MEMTOOL = memtool
"""
RUNS = """\
# One run for each noise ratio and seed, and a second clean one for each seed.
ALL_SEEDS := $(shell seq 0 $$(($(SEEDS) - 1)))
RUNS := $(foreach s,$(ALL_SEEDS),$(RATIOS:%=r%-s$(s)))
CEILINGS := $(ALL_SEEDS:%=ceiling-s%)
ALL_RUNS := $(RUNS) $(CEILINGS)
# The noise ratios whose stitched models are compared with the clean one.
COMPARED := $(or $(filter $(RATIOS),$(SUPPLEMENT)),$(filter-out 0,$(RATIOS)),0)
SUPPLEMENTS := $(foreach s,$(ALL_SEEDS),$(COMPARED:%=r%-s$(s)))
"""
# Files are whole or absent, whatever ends their commands: make is to remove none.
SPECIAL = """\
.PHONY: all
.PRECIOUS: {}
.SECONDEXPANSION:
"""
# All that is made of one run, to be made where it is missing, and kept.
MADE = """\
MADE := $(RUNS:%=$(DIR)/labels/%.safetensors) $(ALL_RUNS:%=$(DIR)/runs/%.safetensors)
MADE += {}
"""
# The pattern of networks matches these files, too, and would ask for labels that cannot be.
SAVED = """\
# Checkpoints that are written while a network is trained are not made alone.
CHECKPOINTS := $(foreach e,$(before),$(ALL_RUNS:%=$(DIR)/runs/%/epoch-$e.safetensors))
$(CHECKPOINTS):
\t@echo '$@: comes with $(@D).safetensors; make that, once it is removed' >&2; exit 1
"""
# How memtool is told of all choices, to find that all is done and write the findings.
LAST = (
    "-o $(DIR) --data '$(DATA)' --model '$(MODEL)' --ratios '$(RATIOS:%=%%)'"
    " --supplement '$(COMPARED:%=%%)' --seeds $(SEEDS) --epochs $(EPOCHS) --save-at '$(SAVED)'"
    " --layers '$(LAYERS)' --cuts '$(CUTS)' --train '$(TRAIN)' --cka '$(CKA)'"
    " $(samples) --stitch '$(STITCH)' -q"
)
LAST_MADE = ("report.html", "findings.csv")
# What means something else to make or the shell in a path, which stands without quotes.
UNQUOTED = ' :;=%&|<>()[]{}*?~`"'
# Further options of commands, which the shell splits into words.
OPTIONS = ("TRAIN", "CKA", "STITCH")


def to_makefile(recipe: Recipe, root: Path, study: str | None, data_dir: Path | None = None) -> str:
    """The Makefile that does what the steps of the recipe do; `data_dir` is where torchvision's
    data sets are, if not where MEMTOOL_DATA says.

    Raises MemtoolError for a choice or a path that make cannot take.
    """
    if root == Path():
        root = root.resolve()  # make takes ./ off, and no rule for ./% would be one for %
    values = {"DIR": str(root), **variables(recipe)}
    values |= {name: _quoted(values[name]) for name in OPTIONS}
    exported = {**ENVIRONMENT, **({"MEMTOOL_DATA": str(data_dir)} if data_dir else {})}
    for name, value in (*values.items(), *exported.items()):
        _check(value, UNQUOTED if name == "DIR" else "")
        if value != value.strip():
            raise MemtoolError(f"{value!r}: make cannot take blanks at an end of {name}")
    of_runs = (CEILING, *RUN_RULES)
    goals = " ".join(path.replace("%", "$(DIR)") for rule in FIGURES for path in rule.makes)
    last_made = " ".join(f"$(DIR)/{name}" for name in LAST_MADE)
    last = " ".join(["reproduce", *([study] if study else []), LAST])
    environment = "".join(f"export {name} ?= {value}\n" for name, value in exported.items())
    parts = [
        HEAD + _assigned(values) + environment,
        RUNS,
        "# What depends on the name of a run, and the tables of all runs.\n" + _assigned(FUNCTIONS),
        MADE.format(" ".join(f"$({kind})" for kind in TABLES)),
        SPECIAL.format(" ".join(path for rule in of_runs for path in rule.makes)),
        f"all {last_made}: $(MADE) {goals}\n\t$(MEMTOOL) {last}\n",
        SAVED,
        *map(_rule, (*of_runs, *FIGURES)),
    ]
    return "\n".join(parts)


def _assigned(values: dict[str, str]) -> str:
    return "".join(f"{name} = {value}".rstrip() + "\n" for name, value in values.items())


def _rule(rule: Rule) -> str:
    # What stands for a name is looked up once the run is known: a second expansion.
    needs = " ".join(rule.needs).replace("$(", "$$(").replace("$$(DIR)", "$(DIR)")
    return f"{' '.join(rule.makes)}: {needs}".rstrip() + f"\n\t$(MEMTOOL) {rule.command}\n"


def _quoted(options: str) -> str:
    """Options as the shell splits them into the words that they are, within single quotes, too.
    Raises MemtoolError for a word that double quotes cannot hold."""
    words = shlex.split(options)
    for word in words:
        _check(word, '`"')
    return " ".join(word if word == shlex.quote(word) else f'"{word}"' for word in words)


def _check(value: str, others: str) -> None:
    """Raise MemtoolError for a value with characters that mean something else in a Makefile, that
    end the quotes around it, or that a terminal would obey."""
    if found := {char for char in value if char in "#$'\\" + others or printable(char) != char}:
        raise MemtoolError(f"{value}: make cannot take {' '.join(sorted(found))!r} in it")
