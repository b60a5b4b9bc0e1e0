"""The Python API: what `import memtool` offers."""

import builtins
import subprocess
import sys

import matplotlib.figure
import pytest
import torch

import memtool


def test_importing_takes_nothing_heavy_along_and_offers_everything():
    script = (
        "import sys, memtool\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pandas', 'typer'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "offered = {'cka', 'CKA', 'load', 'dataset', 'trace', 'read_table', 'draw'}\n"
        "assert offered <= set(dir(memtool))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_checkpoint_its_data_set_and_its_layers(runs):
    network = memtool.load(runs.clean)
    digits = memtool.dataset("digits")
    images = torch.from_numpy(digits.test.images)
    logits = network(images)
    correct = (logits.argmax(1).numpy() == digits.test.labels).mean()
    assert correct > 0.5 and not network.model.training
    layers = memtool.trace(network.model, network.normalized(images[:2]))
    assert [layer.name for layer in layers][-1] == "fc"


@pytest.mark.parametrize("path", [None, 3, b"a.safetensors", ["a.safetensors"]])
@pytest.mark.parametrize("read", [memtool.load, memtool.read_table])
def test_what_is_no_path_is_told(read, path):
    with pytest.raises(memtool.MemtoolError, match=f"is of type {type(path).__name__}; a path is"):
        read(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_cannot_be_traced_is_told(runs):
    network = memtool.load(runs.clean)
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    given = network.normalized(images)
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Flatten()))
    exported = torch.export.export(network.model, (given,)).module()
    for model, its, told in (
        (network, given, "not a Network; that of a network is network.model"),
        (len, given, "not a builtin_function_or_method"),
        (scripted, given, "a scripted module hides its layers"),
        (exported, given, "GraphModule has no eval mode .*, which hides its layers; take"),
        (torch.nn.Sequential(exported), given, "Sequential has no eval mode .*torch.export"),
        (network.model, given[:0], r"no images in a tensor of shape \(0, 1, 8, 8\); give them as"),
        (network.model, given[0, 0, 0, 0], r"no images in a tensor of shape \(\)"),
        (network.model, images.numpy(), r"not a ndarray; .* as network.normalized\(images\) does"),
        (network.model, [given], "not a list"),
        (network.model, images, r"given images of \(2, 1, 8, 8\), torch.uint8: RuntimeError"),
        (network.model, given[:, :, :3], "given images of .2, 1, 3, 8., torch.float32: Runtime"),
        (network.model, given[0], "given images of .1, 8, 8., torch.float32"),
    ):
        with pytest.raises(memtool.MemtoolError, match=told):
            memtool.trace(model, its)


@pytest.mark.parametrize("has_pandas", [True, False])
def test_tables_are_read_as_frames_where_there_is_pandas_and_drawn(
    run, runs, tmp_path, monkeypatch, has_pandas
):
    path = tmp_path / "cka.csv"
    command = ("cka", runs.noisy, runs.clean, "--layers", "block1,fc", "--pairs", "all", "-o", path)
    assert run(*command).code == 0
    if has_pandas:
        pytest.importorskip("pandas")
    else:
        monkeypatch.setattr("memtool.notebook.find_spec", lambda name: None)
    rows = memtool.read_table(str(path))
    assert isinstance(rows, list) is not has_pandas and len(rows) == 4
    figure = memtool.draw("heatmap", rows)
    assert isinstance(figure, matplotlib.figure.Figure)
    (image,) = figure.axes[0].images
    assert image.get_array().shape == (2, 2)
    narrow = memtool.draw("heatmap", rows, layers="fc", width="column", title="one")
    assert narrow.axes[0].images[0].get_array().shape == (1, 1)
    with pytest.raises(memtool.MemtoolError, match="no figure 'pie'; there are convergence"):
        memtool.draw("pie", rows)
    of_others = [rows["cka"]] if has_pandas else []
    for given in (
        path,
        str(path),
        None,
        3,
        torch.tensor(3),
        [1, 2],
        {},
        ["ab"],
        [None],
        [rows],
        *of_others,
    ):
        with pytest.raises(memtool.MemtoolError, match="rows are a list of dicts or a frame, as"):
            memtool.draw("heatmap", given)
    for option in ({"width": []}, {"x": []}, {"style": 3}):
        with pytest.raises(memtool.MemtoolError):
            memtool.draw("heatmap", rows, **option)
    with pytest.raises(memtool.MemtoolError, match="no figure"):
        memtool.draw([], rows)


def test_what_is_wrong_is_a_memtool_error(tmp_path):
    for work in (
        lambda: memtool.load(tmp_path / "none.safetensors"),
        lambda: memtool.dataset("no such set"),
        lambda: memtool.read_table(tmp_path / "none.csv"),
        lambda: memtool.draw("heatmap", []),
        lambda: memtool.cka(torch.zeros(3, 2), torch.zeros(4, 2)),
    ):
        with pytest.raises(memtool.MemtoolError):
            work()
    assert issubclass(memtool.MemtoolError, builtins.Exception)
