"""Names in any script, and bytes that are no text, in terminals and logs of any encoding."""

import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

DATA = "数据 عربي é 🙂"
CLASSES = ("猫", "كلب", "chien é", "🐟")
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, PLAIN], ids=["ascii", "C"]
)
MEMTOOL = [sys.executable, "-m", "memtool"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("letters")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (root / DATA / part / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(60 * label, 60 * label + 60, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / DATA / part / name / f"图{number}.png")
    return root


def memtool(folder, encoding, *arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **encoding}
    return subprocess.run(
        [*MEMTOOL, *arguments], cwd=folder, env=environment, timeout=120, **options
    )


def said(folder, encoding, *arguments, code=0):
    """What it says on both streams; fails unless it ends with `code` and without a traceback."""
    done = memtool(folder, encoding, *arguments, capture_output=True)
    text = (done.stdout + done.stderr).decode("utf-8")
    assert done.returncode == code and "Traceback" not in text, text
    return text


@pytest.mark.slow
@ENCODINGS
def test_the_commands_work_whatever_the_encoding(folder, encoding):
    def do(*arguments):
        return said(folder, encoding, *arguments)

    train = ("train", "--model", "digits-cnn", "--data", f"folder:{DATA}", "--epochs", "1")
    do("make-noisy", f"folder:{DATA}", "-r", "50%", "-o", "标签.safetensors")
    text = do(*train, "--labels", "标签.safetensors", "-o", "läufe/模型.safetensors")
    assert text.isascii() and "ufe/" in text
    cka = ("cka", "läufe/模型.safetensors", "läufe/模型.safetensors", "--layers", "block?")
    assert do(*cka).isascii()
    do(*cka, "--pairs", "all", "-o", "表.csv")
    assert do("info", "läufe/模型.safetensors", "--format", "table").isascii()
    assert do("info", "--layers", "läufe/模型.safetensors").isascii()
    drawn = do("plot", "表.csv", "-o", "图.png")
    assert drawn.isascii() and "Glyph" not in drawn and "findfont" not in drawn
    assert (folder / "图.png").stat().st_size > 1000
    assert "no such file" in said(folder, encoding, "info", "没有.safetensors", code=1)
    assert "no such file" in said(folder, encoding, "plot", "没有.csv", "-o", "图.png", code=1)
    assert "Usage" in do("train", "--help")


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}])
def test_on_a_terminal_tables_and_bars_use_what_it_can_show(folder, encoding):
    ascii_alone = encoding["PYTHONIOENCODING"] == "ascii"
    train = ("train", "--model", "digits-cnn", "--data", f"folder:{DATA}", "--epochs", "2")
    ours, theirs = pty.openpty()
    done = memtool(
        folder,
        {**encoding, "TERM": "xterm"},
        *(*train, "-o", "终.safetensors"),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while piece := _read(ours):
        seen += piece
    text = seen.decode("utf-8")
    assert done.returncode == 0 and "Traceback" not in text
    assert ("━" in text) is not ascii_alone
    assert ("\\u7ec8" if ascii_alone else "终") in text
    assert text.isascii() is ascii_alone


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux tells that the other end is closed
        return b""


def test_bytes_that_are_no_text_are_shown_as_escapes(folder):
    table = os.fsdecode(b"caf\xe9.csv")
    rows = "checkpoint,reference,layer,reference_layer,cka\na,b,f,f,0.5\na,b,f,g,0.25\n"
    (folder / table).write_text(rows)
    encoding = {"PYTHONIOENCODING": "utf-8"}
    said(folder, encoding, "plot", table, "-o", os.fsdecode(b"\xff.svg"))
    assert os.path.exists(bytes(folder) + b"/\xff.svg")
    (folder / table).write_text(rows.replace("0.25", "x"))
    assert "caf\\udce9.csv, line 3, column cka: 'x'" in said(
        folder, encoding, "plot", table, "-o", "f.svg", code=1
    )
    made = ("make-noisy", "digits", "-r", "5%", "-o", os.fsdecode(b"\xff.safetensors"))
    assert "\\udcff.safetensors: a name that is not UTF-8" in said(folder, encoding, *made, code=1)


def test_controls_in_names_do_not_act_on_a_terminal(folder):
    text = said(folder, {"PYTHONIOENCODING": "utf-8"}, "info", "a\x1b[31mb", code=1)
    assert "\x1b" not in text and "a\\x1b[31mb: no such file" in text
