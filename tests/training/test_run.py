"""Training runs on disk: what they leave, and how a stopped one goes on."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from memtool import tables
from memtool.data import Split, load, normalize
from memtool.tensors import load_tensors, read_metadata
from memtool.training import Metrics
from memtool.training import memory as memory_module
from memtool.training import run as run_module
from memtool.training import state as state_module

EPOCHS = 3


@pytest.fixture(scope="module")
def arguments(folder):
    """A run of a second or less, all its checkpoints kept."""
    return (
        *("train", "--model", "digits-cnn", "--data", f"folder:{folder}", "--epochs", EPOCHS),
        *("--batch-size", 16, "--save-at", "0,1,2,3", "--table"),
    )


@pytest.fixture(scope="module")
def train(run, arguments):
    """Train to DIR/r.safetensors, with its table; gives the result."""

    def train(directory, *more):
        return run(*arguments, directory / "r.csv", "-o", directory / "r.safetensors", *more)

    return train


def contents(directory):
    """Every file below a folder, by its relative path; the rows of tables without their run."""
    return {
        str(path.relative_to(directory)): path.read_bytes().replace(bytes(directory), b"")
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    """The contents of a run that nothing stopped."""
    directory = tmp_path_factory.mktemp("whole")
    assert train(directory).code == 0
    return contents(directory)


def test_a_run_leaves_its_checkpoints_and_table_and_nothing_else(uninterrupted):
    epochs = [f"r/epoch-{epoch:04d}.safetensors" for epoch in range(EPOCHS + 1)]
    assert sorted(uninterrupted) == ["r.csv", "r.safetensors", *epochs]


def test_two_equal_runs_give_equal_bytes(train, tmp_path, uninterrupted):
    train(tmp_path / "again", "-q")
    assert contents(tmp_path / "again") == uninterrupted


def test_another_seed_gives_other_weights(train, tmp_path, uninterrupted):
    train(tmp_path / "seed", "--seed", 1)
    for name, content in contents(tmp_path / "seed").items():
        assert content != uninterrupted[name]


def test_the_rows_are_printed_and_in_the_table(train, tmp_path):
    result = train(tmp_path / "rows")
    assert result.stdout == (tmp_path / "rows" / "r.csv").read_text()
    assert [line.split(",")[6] for line in result.stdout.splitlines()] == ["epoch", "1", "2", "3"]


def test_the_last_epochs_checkpoint_is_the_final_one(uninterrupted):
    assert uninterrupted["r/epoch-0003.safetensors"] == uninterrupted["r.safetensors"]


# Before and after each of the eight files that a run with all checkpoints writes: epoch 0, then
# for three epochs a checkpoint and the state, then the final checkpoint.
@pytest.mark.parametrize("written", range(8))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_stopped_anywhere_and_resumed_a_run_ends_with_the_same_bytes(
    train, tmp_path, uninterrupted, monkeypatch, written, moment
):
    files = []
    save = run_module.save_tensors

    def stopping(path, *rest):
        files.append(path)
        stop = len(files) == written + 1
        if stop and moment == "before":
            raise KeyboardInterrupt
        save(path, *rest)
        if stop:
            raise KeyboardInterrupt

    for module in (run_module, state_module):
        monkeypatch.setattr(module, "save_tensors", stopping)
    monkeypatch.setattr(run_module, "BETWEEN_STATES", 0)
    stopped = train(tmp_path / "stopped")
    assert stopped.code == 130 and len(files) == written + 1
    monkeypatch.undo()
    resumed = train(tmp_path / "stopped", "--resume")
    assert resumed.code == 0
    assert contents(tmp_path / "stopped") == uninterrupted


def test_states_are_written_now_and_then(train, tmp_path, uninterrupted, monkeypatch):
    written, save = [], state_module.State.save

    def saving(self, model, optimizer, progress):
        written.append(progress.epoch)
        save(self, model, optimizer, progress)
        if progress.epoch == stops_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(state_module.State, "save", saving)
    # Seconds: one epoch, two, three, after each of which the clock is read, and after each state.
    ticks = iter([0, 0, 1, 2, 2, 3, 3.5, 4, 4])
    monkeypatch.setattr(run_module, "monotonic", lambda: next(ticks))
    stops_after = None
    assert train(tmp_path / "whole", "--epochs", 5).code == 0
    assert written == [1, 3, 5]
    monkeypatch.setattr(run_module, "monotonic", lambda: 0)
    stops_after = 1
    assert train(tmp_path / "stopped").code == 130
    assert train(tmp_path / "stopped", "--resume").code == 0
    assert written == [1, 3, 5, 1, 2, 3]
    assert contents(tmp_path / "stopped") == uninterrupted


def test_killed_and_resumed_a_run_ends_with_the_same_bytes(
    arguments, train, tmp_path, uninterrupted
):
    directory = tmp_path / "killed"
    command = [*arguments, directory / "r.csv", "-o", directory / "r.safetensors"]
    with subprocess.Popen(
        [sys.executable, "-m", "memtool", *map(str, command)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline().startswith(b"checkpoint,")
        assert process.stdout.readline()  # the row of epoch 1
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    assert (directory / "r.state.safetensors").exists()
    assert not (directory / "r.safetensors").exists()
    assert train(directory, "--resume").code == 0
    assert contents(directory) == uninterrupted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resumed_on_a_gpu_a_run_ends_with_the_same_weights(train, tmp_path, monkeypatch):
    """But for rounding: sums come in another order there from one time to the next."""
    options = ("--device", "cuda", "--precision", "float32")
    assert train(tmp_path / "whole", *options).code == 0
    evaluated, evaluate = [], run_module.evaluate

    def stopping(*arguments):
        evaluated.append(arguments)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(run_module, "evaluate", stopping)
    assert train(tmp_path / "stopped", *options).code == 130
    monkeypatch.undo()
    done = read_metadata(tmp_path / "stopped/r.state.safetensors", "state")
    assert done["epoch"] == 1
    assert train(tmp_path / "stopped", *options, "--resume").code == 0
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_second_gpu_a_run_ends_with_the_same_weights(train, tmp_path):
    before = torch.cuda.current_device()
    try:
        for device in ("cuda:0", "cuda:1"):
            torch.cuda.reset_peak_memory_stats(device)
            used = torch.cuda.max_memory_allocated(device)
            options = ("--device", device, "--precision", "float32")
            assert train(tmp_path / device, *options).code == 0
            assert torch.cuda.max_memory_allocated(device) > used
    finally:
        torch.cuda.set_device(before)
    assert_same_weights(tmp_path / "cuda:0", tmp_path / "cuda:1")


def assert_same_weights(directory, other):
    found, expected = (load_tensors(one / "r.safetensors") for one in (directory, other))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_cannot_train_the_same_run(train, tmp_path):
    directory = tmp_path / "claimed"
    code = (
        "import pathlib, sys\n"
        "from memtool.files import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, directory / "r.safetensors"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused = train(directory)
        assert refused.code == 1 and f"process {other.pid} on" in refused.stderr
    assert not directory.exists()  # it was made for that file


def stop_after_epoch_1(train, directory, monkeypatch, *more):
    save = state_module.State.save

    def stopping(self, *rest):
        save(self, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(state_module.State, "save", stopping)
    assert train(directory, *more).code == 130
    monkeypatch.undo()


def test_each_step_is_told_and_those_that_are_done_at_once(
    train, tmp_path, monkeypatch, progress_of
):
    stop_after_epoch_1(train, tmp_path, monkeypatch)
    totals, steps = progress_of("memtool.cli.train")
    assert train(tmp_path, "--resume").code == 0
    batches = 64 // 16
    assert totals == [EPOCHS * batches]
    assert [done for done in steps if done] == [batches] + [1] * (EPOCHS - 1) * batches


OTHERS = {
    "training.seed was 0, is 1": ("--seed", 1),
    "training.epochs was 3, is 4": ("--epochs", 4),
    "training.learning_rate was 0.003, is 0.1": ("--learning-rate", 0.1),
    "training.batch_size was 16, is 8": ("--batch-size", 8),
    "training.warmup was 0.1, is 0.5": ("--warmup", 0.5),
    "training.optimizer was adamw, is sgd": ("--optimizer", "sgd"),
    "training.schedule was linear, is cosine": ("--schedule", "cosine"),
    "training.augment was none, is crop-flip": ("--augment", "crop-flip"),
    "training.clip_norm was None, is 1.0": ("--clip-norm", 1),
    "training.decay_norm was False, is True": ("--decay-norm",),
    "training.precision was float32, is bf16": ("--precision", "bf16"),
    "training.evaluate_every was 1, is 2": ("--evaluate-every", 2),
    "training.saved_epochs was [0, 1, 2, 3], is [1, 2]": ("--save-at", "1,2"),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_a_run_does_not_go_on_with_other_settings(train, tmp_path, monkeypatch, difference):
    stop_after_epoch_1(train, tmp_path, monkeypatch)
    before = contents(tmp_path)
    result = train(tmp_path, "--resume", *OTHERS[difference])
    assert result.code == 1
    state = tmp_path / "r.state.safetensors"
    assert result.stderr.startswith(f"memtool: error: {state}: is of a run with other settings: ")
    assert difference in result.stderr
    assert contents(tmp_path) == before


@pytest.fixture
def finished(train, tmp_path):
    """The folder of a run that is finished."""
    assert train(tmp_path / "done").code == 0
    return tmp_path / "done"


def test_a_finished_run_is_done_and_its_rows_are_told_again(
    train, finished, uninterrupted, monkeypatch
):
    monkeypatch.setattr(run_module, "fit", None)  # nothing is trained
    monkeypatch.setattr(run_module, "build", None)
    (finished / "r.csv").unlink()
    result = train(finished, "--resume")
    assert result.code == 0
    assert "r.safetensors: is finished; nothing to do" in result.stderr
    assert contents(finished) == uninterrupted


def test_a_finished_run_is_not_trained_anew(train, finished, uninterrupted):
    result = train(finished)
    assert result.code == 1 and "r.safetensors: is finished; --resume takes it" in result.stderr
    assert contents(finished) == uninterrupted


@pytest.mark.parametrize("difference", OTHERS)
def test_a_finished_run_is_not_one_with_other_settings(train, finished, uninterrupted, difference):
    for resume in [["--resume"], []]:
        result = train(finished, *resume, *OTHERS[difference])
        assert result.code == 1 and difference in result.stderr
    assert contents(finished) == uninterrupted


def test_another_file_is_not_overwritten(train, tmp_path):
    other = tmp_path / "r.safetensors"
    other.write_bytes(b"something else")
    result = train(tmp_path)
    assert result.code == 1 and result.stderr.startswith(f"memtool: error: {other}: ")
    assert other.read_bytes() == b"something else"


def test_epochs_that_are_not_evaluated_have_no_row(run, folder, tmp_path):
    result = run(
        *("train", "--model", "digits-cnn", "--data", f"folder:{folder}", "--epochs", 7),
        *("-o", tmp_path / "r.safetensors", "--evaluate-every", 3, "--save-at", "2,3"),
    )
    assert [line.split(",")[6] for line in result.stdout.splitlines()] == ["epoch", *"2367"]
    history = read_metadata(tmp_path / "r.safetensors")["history"]
    assert [metrics["epoch"] for metrics in history] == [2, 3, 6, 7]
    assert "evaluation took" in result.stderr


def test_a_run_does_not_go_on_with_other_labels(run, train, folder, tmp_path, monkeypatch):
    labels = tmp_path / "labels.safetensors"
    noise = ("make-noisy", f"folder:{folder}", "-r", "50%", "-o", labels)
    run(*noise)
    stop_after_epoch_1(train, tmp_path / "run", monkeypatch, "--labels", labels)
    run(*noise, "--seed", 1)
    assert train(tmp_path / "run", "--labels", labels, "--resume").code == 1
    run(*noise)
    assert train(tmp_path / "run", "--labels", labels, "--resume").code == 0


def test_resume_starts_where_there_is_nothing_to_go_on_from(train, tmp_path, uninterrupted):
    assert train(tmp_path / "new", "--resume").code == 0
    assert contents(tmp_path / "new") == uninterrupted


def test_without_resume_a_stopped_run_starts_anew(train, tmp_path, uninterrupted, monkeypatch):
    stop_after_epoch_1(train, tmp_path / "again", monkeypatch, "--seed", 1)
    result = train(tmp_path / "again")
    assert result.code == 0 and "a stopped run, which --resume continues" in result.stderr
    assert contents(tmp_path / "again") == uninterrupted


def test_a_state_that_is_none_is_an_error(train, tmp_path):
    state = tmp_path / "r.state.safetensors"
    state.write_bytes(b"half of it")
    result = train(tmp_path, "--resume")
    assert result.code == 1 and result.stderr.startswith(f"memtool: error: {state}: ")


def test_one_seed_gives_the_same_initial_weights_whatever_the_labels(run, train, folder, tmp_path):
    pattern = tmp_path / "labels{ratio}.safetensors"
    run("make-noisy", f"folder:{folder}", "-r", "0,50%", "-o", pattern)
    starts = []
    for ratio in ("0", "50"):
        directory = tmp_path / ratio
        train(directory, "--labels", str(pattern).replace("{ratio}", ratio))
        starts.append(load_tensors(directory / "r" / "epoch-0000.safetensors"))
        final = load_tensors(directory / "r.safetensors")
        assert not torch.equal(starts[-1]["fc.weight"], final["fc.weight"])
    assert starts[0].keys() == starts[1].keys()
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])


def test_another_order_of_batches_starts_from_the_same_weights(train, tmp_path, uninterrupted):
    """And a run whose order has the seed of its weights is one without that option."""
    train(tmp_path / "same", "--order-seed", 0)
    assert contents(tmp_path / "same") == uninterrupted
    train(tmp_path / "other", "--order-seed", 7)
    for epoch, is_equal in (("r/epoch-0000", True), ("r", False)):
        one, other = (
            load_tensors(tmp_path / folder / f"{epoch}.safetensors") for folder in ("same", "other")
        )
        assert torch.equal(one["fc.weight"], other["fc.weight"]) == is_equal
    recorded = read_metadata(tmp_path / "other/r.safetensors")["training"]
    assert (recorded["seed"], recorded["order_seed"]) == (0, 7)
    assert {row["order_seed"] for row in tables.read(tmp_path / "other/r.csv")} == {7}
    assert {row["order_seed"] for row in tables.read(tmp_path / "same/r.csv")} == {None}


def test_a_checkpoint_says_how_it_came_about(train, tmp_path, folder):
    train(tmp_path, "--seed", 5)
    metadata = read_metadata(tmp_path / "r" / "epoch-0002.safetensors")
    assert metadata["data"]["name"] == f"folder:{folder}"
    assert metadata["model"]["name"] == "digits-cnn"
    training = metadata["training"]
    assert (training["epoch"], training["steps"], training["seed"]) == (2, 8, 5)
    assert (training["noise_ratio"], training["noise_kind"]) == (0.0, None)
    assert set(metadata["metrics"]) == set(Metrics.__annotations__)
    history = metadata["history"]
    assert [metrics.pop("epoch") for metrics in history] == [1, 2]
    assert history[-1] == metadata["metrics"]


def test_a_loss_that_is_not_finite_ends_the_run_with_no_checkpoint(train, tmp_path):
    result = train(tmp_path, "--learning-rate", 1e30, "--save-at", "1")
    assert result.code == 1
    assert result.stderr.startswith("memtool: error: the loss is ")
    assert contents(tmp_path) == {}


def test_one_image_is_not_enough(run, tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        (tmp_path / part / "ant").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / part / "ant" / "0.png")
    output = tmp_path / "r.safetensors"
    result = run("train", "--model", "digits-cnn", "--data", f"folder:{tmp_path}", "-o", output)
    assert result.code == 1 and "one training image" in result.stderr
    assert not output.exists()


def test_the_statistics_of_batch_norm_are_those_of_the_batches_alone(train, tmp_path):
    train(tmp_path)
    final = load_tensors(tmp_path / "r.safetensors")
    steps = read_metadata(tmp_path / "r.safetensors")["training"]["steps"]
    counts = [value for name, value in final.items() if name.endswith("num_batches_tracked")]
    assert counts and {count.item() for count in counts} == {steps}


def test_vectors_are_not_cropped(run, tmp_path):
    import numpy as np

    features = np.random.default_rng(0).random((20, 6), dtype=np.float32)
    arrays = {"features": features, "labels": np.arange(20) % 2}
    np.savez(
        tmp_path / "vectors.npz",
        **{f"{part}_{name}": value for part in ("train", "test") for name, value in arrays.items()},
    )
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(num_classes=2): return nn.Linear(6, num_classes)\n"
    )
    train = ("train", "--model", f"{tmp_path}/net.py:make", "--data", tmp_path / "vectors.npz")
    output = ("-o", tmp_path / "r.safetensors", "--epochs", 1)
    result = run(*train, *output, "--augment", "crop-flip")
    assert result.code == 1 and "vectors cannot be cropped" in result.stderr
    assert run(*train, *output).code == 0


def test_images_that_outgrow_the_memory_are_trained_on_alike(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, memory in (("whole", "1GiB"), ("mapped", "10KiB")):
        result = run(
            *("train", "--model", "digits-cnn", "--data", f"folder:{folder}", "--epochs", 2),
            *("--augment", "crop-flip", "-o", tmp_path / f"{name}.safetensors"),
            *("--memory", memory),
        )
        assert result.code == 0, result.stderr
    assert any((tmp_path / "cache").rglob("images-*"))
    whole, mapped = (tmp_path / f"{name}.safetensors" for name in ("whole", "mapped"))
    assert whole.read_bytes() == mapped.read_bytes()


def test_a_training_step_has_to_fit_beside_the_images(train, tmp_path, monkeypatch):
    taken, put = [], Split.on

    def on(split, device):
        taken.append(split.images.nbytes)
        return put(split, device)

    monkeypatch.setattr(Split, "on", on)
    monkeypatch.setattr(memory_module, "memory_of", lambda device: 1000 if taken else 2**30)
    told = train(tmp_path)
    assert told.code == 1 and "a training step with 16 images takes" in told.stderr
    assert not told.stdout  # no table without rows
    assert len(taken) == 2 and not list(tmp_path.glob("*.safetensors"))


def test_a_step_takes_no_more_than_the_training_images(train, tmp_path):
    done = train(tmp_path, "--batch-size", 10**9)
    assert done.code == 0, done.stderr


def test_a_compiled_model_is_saved_under_its_own_names(train, tmp_path, uninterrupted, monkeypatch):
    compiled = []

    class Compiled(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self._orig_mod = model
            compiled.append(model)

        def forward(self, images):
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    assert train(tmp_path, "--compile").code == 0
    assert len(compiled) == 1
    expected = load_tensors(tmp_path / "r.safetensors")
    whole = tmp_path / "whole.safetensors"
    whole.write_bytes(uninterrupted["r.safetensors"])
    for name, tensor in load_tensors(whole).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("model", "keeps"), [("resnet18?width=2", True), ("digits-cnn", False)])
def test_the_compiler_keeps_the_channels_where_they_are_not_put_last(
    train, tmp_path, monkeypatch, model, keeps
):
    compiled = []

    def compile(model, **options):
        compiled.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    assert train(tmp_path, "--model", model, "--compile").code == 0
    assert compiled == [{"options": {"layout_optimization": False}} if keeps else {}]


def test_what_cannot_be_compiled_is_one_line(train, tmp_path, monkeypatch):
    class Failing(torch.nn.Module):
        def __init__(self, model):
            super().__init__()

        def forward(self, images):
            raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", Failing)
    result = train(tmp_path, "--compile")
    assert result.code == 1
    assert "memtool: error: --compile: RuntimeError: no C++ compiler" in result.stderr


def test_bf16_trains_a_network_of_float32(train, tmp_path, uninterrupted):
    result = train(tmp_path, "--precision", "bf16")
    assert result.code == 0, result.stderr
    final = load_tensors(tmp_path / "r.safetensors")
    assert all(t.dtype is not torch.bfloat16 for t in final.values())
    assert (tmp_path / "r.safetensors").read_bytes() != uninterrupted["r.safetensors"]
    assert read_metadata(tmp_path / "r.safetensors")["training"]["precision"] == "bf16"


OF_ONE_CHANNEL = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

class View(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, images):
        return self.fc(self.flat(self.two(self.one(images).relu())))

    def flat(self, x):
        return x.view(len(x), -1)

class ViewInTraining(View):
    def flat(self, x):
        return x.view(len(x), -1) if self.training else x.reshape(len(x), -1)

class Strided(View):  # reads memory in its own order
    def flat(self, x):
        return torch.as_strided(x, (len(x), 128), (128, 1))

class Checkpointed(View):
    def forward(self, images):
        if not self.training:
            return super().forward(images)
        x = self.one(images).relu()
        return self.fc(checkpoint(self.two, x, use_reentrant=True).flatten(1))

class Spectral(View):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.filter = nn.Parameter(torch.ones(8, 5, dtype=torch.cfloat))

    def forward(self, images):
        filtered = torch.fft.irfft2(torch.fft.rfft2(images) * self.filter, s=(8, 8))
        return super().forward(filtered)
"""


@pytest.mark.parametrize("name", ["View", "ViewInTraining", "Strided", "Checkpointed", "Spectral"])
def test_the_rows_are_those_of_the_checkpoint_whatever_the_order_in_memory(run, tmp_path, name):
    """Images of one channel have the same order with the channels first and last, what
    convolutions make of them has not."""
    (tmp_path / "net.py").write_text(OF_ONE_CHANNEL)
    path = tmp_path / "r.safetensors"
    model = f"{tmp_path}/net.py:{name}"
    result = run("train", "--model", model, "--data", "digits", "--epochs", 1, "-o", path, "-q")
    assert result.code == 0, result.stderr
    scope: dict = {}
    exec(OF_ONE_CHANNEL, scope)
    network = scope[name]().eval()
    network.load_state_dict(load_tensors(path))
    digits, statistics = load("digits"), read_metadata(path)["data"]
    images = normalize(digits.test.on(torch.device("cpu")), statistics["mean"], statistics["std"])
    with torch.no_grad():
        right = network(images).argmax(1) == torch.from_numpy(digits.test.labels)
    assert read_metadata(path)["metrics"]["test_accuracy"] == right.double().mean().item()


KEEPS_ITS_GRAPH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.register_buffer("mean", torch.zeros(num_classes))

    def forward(self, images):
        logits = self.fc(images.flatten(1))
        self.mean.mul_(0.9).add_(logits.mean(0), alpha=0.1)  # ought to be detached
        return logits - self.mean
"""


def test_a_model_of_which_no_second_step_can_be_taken_is_told_in_one_line(run, tmp_path):
    (tmp_path / "net.py").write_text(KEEPS_ITS_GRAPH)
    model = f"{tmp_path}/net.py:Net"
    result = run("train", "--model", model, "--data", "digits", "-o", tmp_path / "r.safetensors")
    *_, last = result.stderr.splitlines()
    assert result.code == 1 and "net.py:Net" in last
    assert "Trying to backward through the graph a second time" in last


def test_nothing_else_is_lost_where_a_run_keeps_its_state_or_its_epochs(train, tmp_path):
    (tmp_path / "r").mkdir()
    for path in (tmp_path / "r.state.safetensors", tmp_path / "r/epoch-0001.safetensors"):
        train(tmp_path / "other", "--resume", "--save-at", "0")
        path.write_bytes(content := (tmp_path / "other/r.safetensors").read_bytes())
        for more in ((), ("--resume",), ("--dry-run",)):
            result = train(tmp_path, "--save-at", "1", *more)
            assert result.code == 1 and str(path) in result.stderr, result.stderr
            assert "or choose another -o" in result.stderr and result.stderr.count("\n") == 1
            assert path.read_bytes() == content
        path.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"r", "other"}


def test_epochs_of_a_run_before_are_replaced(train, tmp_path, uninterrupted):
    train(tmp_path, "--seed", 3)
    (tmp_path / "r.safetensors").unlink()
    assert train(tmp_path).code == 0
    assert contents(tmp_path) == uninterrupted


def test_a_dry_run_checks_the_state_that_is_to_be_resumed(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(run_module.Run, "finish", lambda *_: None)
        train(tmp_path)
    assert train(tmp_path, "--resume", "--dry-run").code == 0
    result = train(tmp_path, "--resume", "--dry-run", "--seed", 9)
    assert result.code == 1 and "seed was 0, is 9" in result.stderr


NOTED = """
from torch import nn

def make(num_classes=10, note=0):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize(
    "model, data, told",
    [
        ("digits-cnn", "digits?mean=1e31", "no sensible 'mean' in 'data'"),
        ("net.py:make?note=Infinity", "digits", "a number that is not finite"),
    ],
)
def test_what_no_checkpoint_can_hold_is_told_before_the_work(
    run, tmp_path, monkeypatch, model, data, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NOTED)
    result = run("train", "--model", model, "--data", data, "-o", "r.safetensors")
    assert result.code == 1 and told in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout and [path.name for path in tmp_path.iterdir()] == ["net.py"]


LINEAR = """
from torch import nn

def make(num_classes=2):
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, num_classes))
"""


def test_a_test_loss_that_is_not_finite_is_told(run, tmp_path):
    (tmp_path / "net.py").write_text(LINEAR)
    train, test = np.random.default_rng(0).normal(size=(2, 40, 4)).astype(np.float32)
    test[0] = 3e38
    labels = {f"{part}_labels": np.arange(40) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "x.npz", train_features=train, test_features=test, **labels)
    data = ("--model", f"{tmp_path}/net.py:make", "--data", tmp_path / "x.npz")
    result = run("train", *data, "--epochs", 1, "-o", tmp_path / "r.safetensors", "-q")
    assert result.code == 1 and "error: the test_loss is " in result.stderr


WITH_STATE = """
import random
import numpy as np
import torch
from torch import nn

class Averaged(nn.Module):
    # Follows itself by averages: a buffer that is made anew, and the weights of a teacher.
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.teacher = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(144, num_classes)
        self.register_buffer("mean", torch.zeros(144))
        self.register_buffer("filter", torch.fft.rfft2(torch.randn(8, 8)).conj())

    def forward(self, images):
        images = torch.fft.irfft2(torch.fft.rfft2(images) * self.filter, s=(8, 8))
        x = self.conv(images).flatten(1).relu()
        if self.training:
            with torch.no_grad():
                self.teacher.weight.lerp_(self.conv.weight, 0.1)
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.fc(x - self.mean + self.teacher(images).flatten(1))

class Drawing(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images):
        noise = random.random() + np.random.uniform() if self.training else 0
        return super().forward(images * (1 + noise))

class Experts(nn.Module):
    # Of the experts, one has a gradient at a time; which, is drawn.
    def __init__(self, num_classes=10):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, num_classes) for _ in range(4))

    def forward(self, images):
        chosen = int(torch.randint(4, ())) if self.training else 0
        return self.experts[chosen](images.flatten(1))
"""


def test_the_trials_before_training_leave_no_traces(run, tmp_path):
    (tmp_path / "net.py").write_text(WITH_STATE)
    model = f"{tmp_path}/net.py:Averaged"
    command = ("--data", "digits?samples_train=100", "--epochs", 1, "--save-at", 0)
    result = run("train", "--model", model, *command, "-o", tmp_path / "r.safetensors", "-q")
    assert result.code == 0, result.stderr
    scope: dict = {}
    exec(WITH_STATE, scope)
    torch.manual_seed(0)
    expected = scope["Averaged"]().state_dict()
    found = load_tensors(tmp_path / "r/epoch-0000.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("options", [("Drawing",), ("Experts", "--optimizer", "sgd")])
def test_two_runs_of_one_seed_are_equal_whatever_draws(run, tmp_path, options):
    (tmp_path / "net.py").write_text(WITH_STATE)
    name, *others = options
    command = ("--model", f"{tmp_path}/net.py:{name}", "--data", "digits", "--epochs", 2, *others)
    for number in (1, 2):
        path = tmp_path / f"{number}.safetensors"
        assert run("train", *command, "-o", path, "-q").code == 0
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
