"""Networks whose code prints, or ends the program: a table and an exit code are memtool's alone."""

import csv
import io

import pytest

HEAD = "import sys\nimport torch\n\n"
PRINTING = """
class Net(torch.nn.Sequential):
    def __init__(self, num_classes=10):
        print("building")
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))

    def forward(self, x):
        print("running")
        return super().forward(x)
"""
ENDING = {
    "while the file is run": PRINTING + "\nsys.exit(0)\n",
    "by its command line": PRINTING
    + "\nimport argparse\nargparse.ArgumentParser().parse_args(['train'])\n",
    "when it is built": PRINTING.replace('print("building")', "sys.exit()"),
    "when it runs": PRINTING.replace('print("running")', "sys.exit(3)"),
}


def test_what_a_network_prints_is_no_part_of_the_table(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(HEAD + PRINTING)
    trained = run(
        "train", "--model", "net.py:Net", "--data", "digits", "--epochs", 1, "-o", "a.safetensors"
    )
    compared = run("cka", "a.safetensors", "a.safetensors", "--trust")
    for result, rows in ((trained, 1), (compared, 2)):
        assert result.code == 0, result.stderr
        assert "building" in result.stderr and "running" in result.stderr
        table = list(csv.reader(io.StringIO(result.stdout)))
        assert len(table) == 1 + rows and {len(row) for row in table} == {len(table[0])}


@pytest.mark.parametrize("code", ENDING.values(), ids=ENDING)
def test_a_network_does_not_end_the_program_without_a_word(run, tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(HEAD + code)
    result = run(
        "train", "--model", "net.py:Net", "--data", "digits", "--epochs", 1, "-o", "a.safetensors"
    )
    assert result.code == 1 and "SystemExit" in result.stderr.splitlines()[-1], result.stderr
    assert result.stderr.splitlines()[-1].startswith("memtool: error: ")
    assert not (tmp_path / "a.safetensors").exists()
