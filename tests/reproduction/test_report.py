"""The report: what is in it and what is not, escaping, and how a browser takes it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from memtool import MemtoolError, __version__, tables
from memtool.reproduction import RECIPES, Study, read_results, steps_for, workers, write_report
from memtool.reproduction.exhibits import EXHIBITS
from memtool.reproduction.markup import Markup, element, escaped
from memtool.tensors import save_tensors

from ..figures.examples import supplement_rows
from .examples import World

HOSTILE = "<script>alert('layer')</script>\" onload=\"x"
CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def write(folder, world, steps=(), **others):
    """The tables of a world, as a reproduction leaves them; `others` are the rows of a kind."""
    found = {"training": world.training(), "cka": world.cka(), "stitching": world.stitching()}
    for kind, rows in {**found, **others}.items():
        runs = {}
        for row in rows:
            runs.setdefault(f"tables/{kind}-{name_of(row)}.csv", []).append(row)
        for name, of_run in runs.items():
            write_table(folder / name, of_run)
    if steps:
        write_table(folder / "steps.csv", steps)


def name_of(row):
    if row.get("order_seed") is not None:
        return f"ceiling-s{row['seed']}"
    end = "" if row.get("front_noise_ratio") is None else "front_"
    end = "back_" if row.get("front_noise_ratio") == 0 else end
    return f"r{100 * row[f'{end}noise_ratio']:g}-s{row[f'{end}seed']}"


def write_table(path, rows):
    with tables.writer(list(rows[0]), path, None) as write_row:
        for row in rows:
            write_row(row)


STEPS = [
    {
        "step": "train r50-s0",
        "command": f"memtool train --labels 'a \"b\" & <i>.safetensors' -o {HOSTILE}",
        "output": "runs/r50-s0.safetensors",
        "seconds": 61.5,
        "memory": 412_000_000,
        "warnings": f"a layer called {HOSTILE}",
    },
    {**dict.fromkeys(("command", "output", "warnings")), "step": "x", "seconds": 2, "memory": None},
]
RECORD = {
    "study": HOSTILE,
    "ratios": [0, 25, 50],
    "seeds": 1,
    "train": {"epochs": 8, "augment": None},
    "versions": {"torch": "2.14.1", "<b>": "\x1b[2J\u202e"},
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a reproduction with names that would be markup, were they not escaped."""
    folder = tmp_path_factory.mktemp("reports") / 'a "quoted" <b>folder'
    world = World(layers=("conv", HOSTILE, "fc"), epochs=(1, 2, 8))
    write(folder, world, steps=STEPS, supplement=supplement_rows())
    (folder / "reproduction.json").write_text(json.dumps(RECORD))
    (folder / "runs").mkdir()
    sections = {"model": {}, "training": {}, "data": {"train": 1297, "test": 500}}
    save_tensors(folder / "runs/r0-s0.safetensors", "checkpoint", {"x": torch.ones(1)}, sections)
    return write_report(read_results(folder))


class Page(HTMLParser):
    """Tags, attributes and text of a page. Raises AssertionError if tags are not well nested."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def test_text_is_escaped_and_markup_is_not():
    child = element("b", "<i>&")
    assert child == "<b>&lt;i&gt;&amp;</b>"
    assert element("p", child, "<", title='"x"') == f'<p title="&quot;x&quot;">{child}&lt;</p>'
    assert element("meta", http_equiv="a") == '<meta http-equiv="a">'
    assert escaped("\x00\u202e\ud800") == "\\x00\\u202e\\ud800"
    assert element("p", Markup("<br>")) == "<p><br></p>"


def test_names_are_text_wherever_they_stand(hostile):
    text = hostile.read_text()
    page = Page(text)
    assert set(page.tags).isdisjoint({"script", "i", "iframe", "object", "img", "link"})
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    # In the title, the heading, the scale, two figures' titles or texts, a command, a warning.
    assert sum(HOSTILE in piece for piece in page.text) >= 5
    assert "memtool train --labels 'a \"b\" & <i>.safetensors'" in "".join(page.text)
    assert "\x1b" not in text and "\u202e" not in text


def test_the_page_needs_nothing_else(hostile):
    text = hostile.read_text()
    page = Page(text)
    for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
        assert [value for value in page.values(name) if not value.startswith("#")] == []
    assert re.findall(r"url\((?!#)|@import|@font-face", text) == []
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert "default-src 'none'" in policy and "script-src" not in policy
    schemes = set(re.findall(r'https?://[^\s"<]*', text))
    assert schemes == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_every_reference_within_the_page_has_its_one_target(hostile):
    text = hostile.read_text()
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 100
    links = [value for name in ("href", "xlink:href") for value in page.values(name)]
    paints = [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", text)]
    labels = [f"#{name}" for name in page.values("aria-labelledby")]
    assert {link.removeprefix("#") for link in [*links, *paints, *labels]} <= set(ids)
    assert len(labels) == page.tags.count("svg") == len(EXHIBITS)
    contents = [value for value in page.values("href") if "-" not in value]
    assert contents == ["#scale", "#findings", "#figures", "#settings", "#steps"]


def test_what_a_reader_looks_for_is_there(hostile):
    text = "".join(Page(hostile.read_text()).text)
    assert text.endswith(f"Made by memtool {__version__} with memtool report.\n")
    assert (
        "Of the 15 claims that follow from the paper, 15 hold here, 0 do not; undecided: 0" in text
    )
    for told in (
        "toys",
        "1297 for training, 500 for testing",
        "0%, 25%, 50%",
        "3: conv, <script>",
        "train.epochs",
        "versions.torch",
    ):
        assert told in text
    assert "2 steps, each a command; 1 min 4 s if one ran after the other" in text
    assert "412 MB" in text and "61" not in text.partition("2 steps")[0]
    assert text.count("How to read it.") == len(EXHIBITS)
    assert "Unfinished: missing tables (1 of 13) are supplement-r0-s0.csv." in text


def test_equal_tables_give_equal_bytes_in_however_many_processes(tmp_path):
    world = World(layers=("conv", "fc"), epochs=(1, 8), ratios=(0.0, 0.5))
    for name in ("a", "b"):
        write(tmp_path / name / "out", world, cka=[], stitching=[])
    with workers(2) as pool:
        each = {"a": map, "b": pool.map}
        written = [write_report(read_results(tmp_path / name / "out"), each[name]) for name in each]
    pages = [path.read_bytes() for path in written]
    assert pages[0] == pages[1] and b"</svg>" in pages[0]


def test_what_is_missing_is_left_out_with_the_reason(tmp_path):
    write(tmp_path, World(), cka=[], stitching=[])
    text = "".join(Page(write_report(read_results(tmp_path)).read_text()).text)
    assert "Not drawn: there is no tables/stitching-r*.csv." in text
    assert "no accuracy of noisy fronts on a clean back in the tables" in text
    assert "has no reproduction.json" in text and "there is no steps.csv" in text


def test_the_folder_in_which_one_is_has_a_name(tmp_path, monkeypatch):
    write(tmp_path / "photos", World(), cka=[], stitching=[])
    monkeypatch.chdir(tmp_path / "photos")
    text = "".join(Page(write_report(read_results(Path())).read_text()).text)
    assert "Not recorded: photos has no reproduction.json." in text


def test_a_figure_that_cannot_be_drawn_leaves_the_rest(tmp_path):
    row = {"epoch": 1, "noise_ratio": 0.5, "seed": 0, "given_accuracy": 1, "test_accuracy": 1}
    rows = [row, {**row, "epoch": None}]
    write(tmp_path, World(layers=("conv", "fc")), training=rows, cka=[])
    text = "".join(Page(write_report(read_results(tmp_path)).read_text()).text)
    assert "Not drawn: there is no tables/cka-r*.csv." in text and "net of the control" in text
    assert "Not drawn: training: the table has no column" in text


def test_tables_of_runs_that_are_not_on_record_do_not_count(tmp_path):
    write(tmp_path, World(ratios=(0.0, 0.25, 0.5), seeds=(0, 1)), cka=[], stitching=[])
    (tmp_path / "reproduction.json").write_text('{"ratios": [0, 50], "seeds": 1}')
    text = "".join(Page(write_report(read_results(tmp_path)).read_text()).text)
    assert "Noise ratios r0%, 50%Seeds0Epochs" in text
    assert "Unfinished: missing tables (7 of 9) are cka-ceiling-s0.csv, cka-r0-s0.csv, " in text


def test_tables_of_a_kind_that_is_not_on_record_do_not_count(tmp_path):
    write(tmp_path, World(layers=("conv1", "fc")), supplement=supplement_rows(ratios=(0.25, 0.5)))
    record = {"ratios": [0, 25, 50], "seeds": 1, "supplement": [50]}
    (tmp_path / "reproduction.json").write_text(json.dumps(record))
    page = write_report(read_results(tmp_path)).read_text()
    assert "front of r = 50 %, clean back" in page and "front of r = 25 %" not in page


def test_a_folder_of_anything_else_is_refused(run, tmp_path):
    result = run("report", tmp_path)
    assert result.code == 1
    assert result.stderr == (
        f"memtool: error: {tmp_path}: has no tables of a reproduction, such as "
        f"tables/training-r0-s0.csv; make them with memtool reproduce STUDY -o {tmp_path}\n"
    )
    write(tmp_path, World(), cka=[], stitching=[])
    (tmp_path / "reproduction.json").write_text("[1")
    with pytest.raises(MemtoolError, match="reproduction.json: cannot be read as JSON"):
        write_report(read_results(tmp_path))
    (tmp_path / "reproduction.json").write_text("[1]")
    with pytest.raises(MemtoolError, match="reproduction.json: holds no JSON object"):
        write_report(read_results(tmp_path))
    for choices in ({"seeds": 2**53}, {"seeds": "1"}, {"ratios": [1e400]}, {"supplement": ["x"]}):
        (tmp_path / "reproduction.json").write_text(json.dumps({"ratios": [0], **choices}))
        with pytest.raises(MemtoolError, match=f"is no sensible '{[*choices][0]}'"):
            write_report(read_results(tmp_path))
    assert not (tmp_path / "report.html").exists()


def console(path, folder):
    """What a browser's console says of a page, and the page as it understands it."""
    result = subprocess.run(
        [CHROME, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        + [f"--user-data-dir={folder}", "--dump-dom", path.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line], result.stdout


@pytest.mark.skipif(CHROME is None, reason="there is no chromium, nor google-chrome")
def test_a_browser_has_nothing_to_complain_of(hostile, tmp_path):
    said, page = console(hostile, tmp_path / "profile")
    assert said == []
    assert page.count("</svg>") == len(EXHIBITS)
    assert "&lt;script&gt;" in page and "<script" not in page
    # The page's own policy refuses what does not belong there, and the console says so.
    other = tmp_path / "other.html"
    text = hostile.read_text().replace("</main>", "</main><script>1</script><img src='a.png'>")
    other.write_text(text)
    said, _ = console(other, tmp_path / "profile")
    assert len(said) == 2 and all("Content Security Policy" in line for line in said)


def test_what_earlier_options_made_is_told_and_their_steps_are_left_out(tmp_path):
    recipe = RECIPES[Study.digits].but(ratios=(0, 50), epochs=2, train="--batch-size 8")
    earlier = steps_for(recipe.but(ratios=(0, 25), train=""), tmp_path)
    now = {str(step.outputs[0]): step for step in steps_for(recipe, tmp_path)}
    both = {str(step.outputs[0]): step for step in earlier} | {
        name: step for name, step in now.items() if step.name == "train r0-s0"
    }
    rows = [
        {
            "step": step.name,
            "command": step.recorded,
            "output": name,
            "seconds": None,
            "memory": None,
        }
        for name, step in both.items()
    ]
    write(tmp_path, World(ratios=(0.0, 0.25, 0.5)), steps=rows, cka=[], stitching=[])
    (tmp_path / "reproduction.json").write_text(json.dumps(recipe.json()))
    text = "".join(Page(write_report(read_results(tmp_path)).read_text()).text)
    assert re.search(r"; made by earlier options \(\d+ of \d+\) are train ceiling-s0, ", text)
    assert "make ran them, and measures no times" in text and "train r25-s0" not in text
