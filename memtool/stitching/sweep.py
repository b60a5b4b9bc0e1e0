"""Stitching checkpoints: every front, every cut, both directions and the control.

A job is one cut of one front, in all directions. Its rows come together, because each holds the
accuracy of the control at its cut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.data import Dataset, bytes_on_device
from memtool.device import Precision, Processes, tf32
from memtool.files import check_writable
from memtool.layers import evenly_spaced
from memtool.models import foreign_code
from memtool.progress import Advance, Progress, silent
from memtool.stitching.activations import CachedNetwork, Examples, memory_shares, step_footprint
from memtool.stitching.checks import TRIED, verified_cuts
from memtool.stitching.cuts import Cut, chosen_cuts
from memtool.stitching.execution import Stitching
from memtool.stitching.planning import StitchSettings, directed
from memtool.stitching.settings import Direction, Init
from memtool.stitching.unfinished import Unfinished, seen_from
from memtool.tables import StitchingRow
from memtool.training.memory import check_step

Job = tuple[Checkpoint, Cut]

ENCODED = str.maketrans({"%": "%25", "=": "%3D", "/": "%2F"})


@dataclass(frozen=True)
class Sweep:
    """All that settles a sweep but the data set: each front is stitched to the back at each of its
    `cuts`, which are given by the front's path. The stitched models are kept in `folder`, unless
    that is None."""

    fronts: Sequence[Checkpoint]
    back: Checkpoint
    cuts: Mapping[Path, Sequence[Cut]]
    settings: StitchSettings
    folder: Path | None = None

    @staticmethod
    @tf32(Precision.float32)
    def of(
        fronts: Sequence[Checkpoint],
        back: Checkpoint,
        at: Sequence[str],
        settings: StitchSettings,
        dataset: Dataset,
        device: torch.device,
        folder: Path | None = None,
    ) -> "Sweep":
        """The sweep over the cuts that match `at` (see `matching_cuts`) and hold for the networks
        as they are (see `verified_cuts`), which all run on a few images of the data set; those for
        which there is no stitching layer are left out, too (see `StitchSettings.joined`).

        Raises MemtoolError for what would be in its way, be it after hours: as these three do, for
        too little memory, and as `check` does.
        """
        chosen, n = chosen_cuts(fronts, back, at), len(dataset.train) + len(dataset.test)
        shares = memory_shares(settings.memory, [*fronts, back], n)
        batches = {path: share.batch for path, share in shares.items()}
        most = min(TRIED, *batches.values())
        places = evenly_spaced(len(dataset.test), max(4, most + 1))
        few = torch.from_numpy(dataset.test.images[places]).to(device)
        classes, trains = len(dataset.classes), settings.trains
        if trains:
            step = min(settings.config.batch_size, len(dataset.train))
            batches = {path: max(batch, step) for path, batch in batches.items()}
        ways = settings.directions
        verified = verified_cuts(fronts, back, chosen, ways, few, batches, classes, trains)
        cuts = {path: settings.joined(own, path) for path, own in verified.items()}
        sweep = Sweep(fronts, back, cuts, settings, folder)
        sweep.check(device, dataset)
        return sweep

    @property
    def jobs(self) -> list[Job]:
        return [(front, cut) for front in self.fronts for cut in self.cuts[front.path]]

    def check(self, device: torch.device, dataset: Dataset) -> None:
        """Raise MemtoolError unless training steps fit into the memory of the device beside the
        images of the data set, and the stitched models can be kept, each under a name of its own.
        """
        if self.settings.trains:
            self._check_steps(device, dataset)
        keepers: dict[Path, tuple[Path, Path]] = {}
        for front, cut in self.jobs if self.folder else []:
            for direction in self.settings.directions:
                files, between = directed(direction, (front.path, self.back.path), cut)
                path = self._path(files, between)
                check_writable(path)
                if keepers.setdefault(path, files) != files:
                    raise MemtoolError(
                        f"{path}: would be the stitched model of {' and '.join(map(str, files))} "
                        f"and of {' and '.join(map(str, keepers[path]))}; stitch them one by one, "
                        "each with a folder of its own (--save)"
                    )

    def _check_steps(self, device: torch.device, dataset: Dataset) -> None:
        """Raise MemtoolError if a training step takes more memory than the device has."""
        batch = min(self.settings.config.batch_size, len(dataset.train))
        images = bytes_on_device((dataset.train, dataset.test), device)
        # The way back is longest from the first cut.
        steps = [
            directed(direction, (front, self.back), self.cuts[front.path][0])
            for front in self.fronts
            for direction in self.settings.directions
        ]
        alike = {
            (cut, *((str(end.spec), tuple(end.image_shape)) for end in ends)): (ends, cut)
            for ends, cut in steps
        }
        for ends, cut in alike.values():
            if step := step_footprint(ends, cut, partial(self.settings.layer, cut)):
                check_step(step.of(batch), batch, self.settings.config, device, images)

    def _path(self, files: tuple[Path, Path], cut: Cut) -> Path:
        """Where a stitched model is kept: FRONT--CUT--BACK.safetensors. What separates layers, or
        folders, is percent-encoded within the name of a layer."""
        assert self.folder
        between = "=".join(dict.fromkeys(layer.name.translate(ENCODED) for layer in cut))
        return self.folder / f"{files[0].stem}--{between}--{files[1].stem}.safetensors"

    def json(self, spelled: Callable[[Path], str] = str) -> dict[str, object]:
        """The sweep as JSON holds it, but for the folder; paths are `spelled` so."""
        cuts = {
            spelled(front.path): [f"{f.name}={b.name}" for f, b in self.cuts[front.path]]
            for front in self.fronts
        }
        return {"back": spelled(self.back.path), "cuts": cuts, **self.settings.json()}

    def unfinished(
        self, table: Path | None, dataset: Dataset, resume: bool
    ) -> AbstractContextManager[Unfinished]:
        """Where the rows are kept until the table is done; see `Unfinished`."""
        settings = {
            **self.json(lambda path: seen_from(table, path)),
            "data": dataset.fingerprint,
            "save": self.folder and seen_from(table, self.folder),
        }
        networks, each = [*self.fronts, self.back], self.settings.rows_per_cut
        return Unfinished.beside(table, settings, networks, each, resume, self.folder)

    def rows(
        self,
        dataset: Dataset,
        device: torch.device,
        processes: Processes = Processes(),
        unfinished: Unfinished | None = None,
        progress: Progress = silent,
    ) -> Iterator[StitchingRow]:
        """Train a stitching layer for each job and direction on the true labels of the training
        images, and test the stitched model; yield the rows of each job in turn, after those that
        `unfinished` has already.

        Several processes share the jobs; each yields all rows, and rank 0 alone has `unfinished`.
        """
        unfinished = unfinished or Unfinished()
        finished = processes.gather(unfinished.rows)[0]
        done = len(finished) // self.settings.rows_per_cut
        jobs = self.jobs[done:]
        mine = processes.share(jobs)
        steps = len(self.settings.directions) * self.settings.steps(len(dataset.train))
        with progress("stitching", steps * (done + len(mine))) as advance:
            advance(steps * done)
            yield from finished
            made = self._run(mine, Examples.of(dataset, device), advance)
            for _ in range(0, len(jobs), processes.size):
                for row in (row for rows in processes.gather(next(made, [])) for row in rows):
                    unfinished.keep(row)
                    yield row

    def _run(
        self, jobs: Sequence[Job], examples: Examples, advance: Advance
    ) -> Iterator[list[StitchingRow]]:
        """The rows of each job."""
        if not jobs:
            return
        directions = set(self.settings.directions)
        networks = [*self.fronts, self.back]
        shares = memory_shares(self.settings.memory, networks, len(examples.labels))
        needs_back = self.settings.init is Init.lstsq or Direction.reverse in directions
        theirs = list(dict.fromkeys(layer for _, (_, layer) in jobs))
        with tf32(Precision.float32):
            kept = theirs if needs_back else []
            back = CachedNetwork(self.back, kept, examples, shares[self.back.path])
        for checkpoint, group in groupby(jobs, key=lambda job: job[0]):
            cuts = [cut for _, cut in group]
            ours = list(dict.fromkeys(layer for layer, _ in cuts))
            with tf32(Precision.float32):
                front = CachedNetwork(checkpoint, ours, examples, shares[checkpoint.path])
            for cut in cuts:
                yield self._job((front, back), cut, advance)
            del front  # before the next one takes its memory

    @tf32(Precision.float32)
    def _job(
        self, networks: tuple[CachedNetwork, CachedNetwork], cut: Cut, advance: Advance
    ) -> list[StitchingRow]:
        rows: list[StitchingRow] = []
        done: dict[object, list[StitchingRow]] = {}  # a network is stitched to itself but once
        for direction in self.settings.directions:
            between, own_cut = directed(direction, networks, cut)
            files = between[0].checkpoint.path, between[1].checkpoint.path
            key = files, tuple(layer.name for layer in own_cut)
            if key in done:
                advance(self.settings.steps(len(networks[0].examples.train_labels)))
            else:
                stitching = Stitching(direction, between, own_cut, self.settings)
                place = "=".join(dict.fromkeys(key[1]))
                advance(0, f"{direction} {place}")
                with foreign_code(f"{files[0]} stitched to {files[1]} at {place}"):
                    done[key] = list(stitching.rows(advance))
                advance()
                if self.folder:
                    path = self._path(files, own_cut)
                    stitching.save(path)
                    done[key][-1]["stitched"] = str(path)
            rows += [{**row, "direction": str(direction)} for row in done[key]]
        control = {
            row["epoch"]: row["test_accuracy"]
            for row in rows
            if row["direction"] == Direction.control
        }
        for row in rows:
            row["control_accuracy"] = control.get(row["epoch"])
        return rows
