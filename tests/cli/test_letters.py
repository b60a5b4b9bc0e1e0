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


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (tmp_path / DATA / part / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(60 * label, 60 * label + 60, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / DATA / part / name / f"图{number}.png")
    return tmp_path


# Each argument is the words of a command, joined by newlines. One process for all, since it takes
# seconds to import torch; after each command, both streams get its exit code between separators.
SEVERAL = """
import sys
from memtool.cli import main
for words in sys.argv[1:]:
    try:
        main(words.split("\\n"))
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            print(end="\\x1e" + str(end.code) + "\\x1e", file=stream, flush=True)
"""


def started(folder, encoding, *command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **encoding}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=folder, env=environment, timeout=120, **options)


def told(folder, encoding, *commands):
    """What each command says on both streams, and its exit code; fails if one ends otherwise."""
    words = ["\n".join(command) for command in commands]
    done = started(folder, encoding, "-c", SEVERAL, *words, capture_output=True)
    streams = [stream.decode("utf-8").split("\x1e") for stream in (done.stdout, done.stderr)]
    assert done.returncode == 0 and "Traceback" not in done.stderr.decode(), done.stderr.decode()
    out, err = ([*zip(parts[0:-1:2], parts[1::2], strict=True)] for parts in streams)
    assert len(out) == len(commands) == len(err)
    return [(text + more, int(code)) for (text, code), (more, _) in zip(out, err, strict=True)]


@pytest.mark.slow
@ENCODINGS
def test_the_commands_work_whatever_the_encoding(folder, encoding):
    data, labels, model = f"folder:{DATA}", "标签.safetensors", "läufe/模型.safetensors"
    training = ("--model", "digits-cnn", "--data", data, "--epochs", "1", "--labels", labels)
    cka = ("cka", model, model, "--layers", "block?")
    answers = told(
        *(folder, encoding),
        ("make-noisy", data, "-r", "50%", "-o", labels),
        ("train", *training, "-o", model),
        (*cka, "--pairs", "all", "-o", "表.csv"),
        cka,
        ("info", model, "--format", "table"),
        ("info", "--layers", model),
        ("plot", "表.csv", "-o", "图.png"),
        ("train", "--help"),
        ("info", "没有.safetensors"),
        ("plot", "没有.csv", "-o", "图.png"),
    )
    texts = [text for text, _ in answers]
    assert [code for _, code in answers] == 8 * [0] + 2 * [1], texts
    trained, _, compared, table, layers, drawn, usage, *errors = texts[1:]
    assert "ufe/" in trained
    assert all(text.isascii() for text in (trained, compared, table, layers, drawn))
    assert "Glyph" not in drawn and "findfont" not in drawn
    assert (folder / "图.png").stat().st_size > 1000
    assert "Usage" in usage
    assert all("no such file" in text for text in errors)


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}])
def test_on_a_terminal_tables_and_bars_use_what_it_can_show(folder, encoding):
    ascii_alone = encoding["PYTHONIOENCODING"] == "ascii"
    train = ("train", "--model", "digits-cnn", "--data", f"folder:{DATA}", "--epochs", "2")
    ours, theirs = pty.openpty()
    done = started(
        *(folder, {**encoding, "TERM": "xterm"}),
        *("-m", "memtool", *train, "-o", "终.safetensors"),
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
    good, bad = (os.fsdecode(name) for name in (b"good\xe9.csv", b"bad\xe9.csv"))
    rows = "checkpoint,reference,layer,reference_layer,cka\na,b,f,f,0.5\na,b,f,g,0.25\n"
    (folder / good).write_text(rows)
    (folder / bad).write_text(rows.replace("0.25", "x"))
    (_, drawn), (refused, code), (unmade, other_code) = told(
        *(folder, {"PYTHONIOENCODING": "utf-8"}),
        ("plot", good, "-o", os.fsdecode(b"\xff.svg")),
        ("plot", bad, "-o", "f.svg"),
        ("make-noisy", "digits", "-r", "5%", "-o", os.fsdecode(b"\xff.safetensors")),
    )
    assert (drawn, code, other_code) == (0, 1, 1)
    assert os.path.exists(bytes(folder) + b"/\xff.svg")
    assert "bad\\udce9.csv, line 3, column cka: 'x'" in refused
    assert "\\udcff.safetensors: a name that is not UTF-8" in unmade


def test_controls_in_names_do_not_act_on_a_terminal(folder):
    ((text, code),) = told(folder, {"PYTHONIOENCODING": "utf-8"}, ("info", "a\x1b[31mb"))
    assert code == 1 and "\x1b" not in text and "a\\x1b[31mb: no such file" in text
