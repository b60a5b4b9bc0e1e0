"""Writes man/ and completions/ from the command line itself.

`python -m memtool.manual` writes both; with `--check` it prints what is stale as a diff and exits
with 1. NAME, SYNOPSIS, DESCRIPTION, OPTIONS and EXAMPLES of a page come from the command, COLUMNS
from the declarations in `memtool.tables`, memtool-formats(5) from those in `memtool.metadata`, and
the rest from the constants below. Pages carry the version and no date: equal code gives equal
bytes.
"""

import difflib
import re
import sys
from pathlib import Path
from typing import Any

import typer.completion
import typer.main

from memtool import __version__, tables
from memtool.cli import app
from memtool.files import replacing
from memtool.metadata import HEADER, KINDS, Fields, places

ROOT = Path(__file__).parent.parent

EXIT_STATUS = {
    "0": "Done. If whoever reads the rows stops early, train and stitch --save finish their work; "
    "the other commands end with it.",
    "1": "The work failed; one line on stderr says why.",
    "2": "Wrong usage.",
    "129": "Hung up, with the same files as when it is interrupted.",
    "130": "Interrupted (Ctrl-C). No half-written file is left; what --resume goes on from is: "
    "NAME.state.safetensors of train, FILE.partial of stitch.",
    "143": "Terminated, with the same files.",
}
ENVIRONMENT = {
    "MEMTOOL_CACHE": "Folder for decoded images that do not fit into --memory; else memtool in the "
    "user's cache. Any file there may be removed.",
    "MEMTOOL_DATA": "Where data sets are, or are downloaded to, where --data-dir is not given.",
    "MEMTOOL_DEVICE": "The device to compute on, where --device is not given.",
    "NO_COLOR, FORCE_COLOR, COLUMNS": "As usual for programs that write to a terminal.",
    "OMP_NUM_THREADS": "Threads of a process. The last digits of a sum depend on it.",
    "RANK, LOCAL_RANK, WORLD_SIZE": "Set by torchrun; the processes share the work.",
}
FILES = {
    "Checkpoint (.safetensors)": "Tensors under plain state_dict keys; the metadata key memtool "
    "holds JSON: model, data set, training, metrics; see memtool-formats(5).",
    "Label file (.safetensors)": "given and true (int64), mislabelled (bool), and metadata.",
    "NAME.state.safetensors": "What an unfinished run goes on from with --resume, beside its "
    "output; removed at the end.",
    "images-*.safetensors": "Decoded images in MEMTOOL_CACHE, made again whenever they are missing "
    "or the folder that they come from has changed.",
    "Table (.csv, .tsv, .jsonl)": "One row per measurement, with all its conditions.",
}
FORMATS = [
    "memtool keeps tensors in safetensors files. Their metadata have a single key, memtool, whose "
    "value is a JSON object with sorted keys. A file is refused if it lacks a field that is "
    "required below, or has a field of another type. Fields that are not listed are ignored.",
    "A dot stands between a section and its field, [] for every element of a list. A section that "
    "has been described further up is not described again.",
]
# The rows that each command prints, without an option or with one, and those that it keeps.
ROWS: dict[str, type] = {
    "memtool train": tables.TrainingRow,
    "memtool cka": tables.CkaRow,
    "memtool stitch": tables.StitchingRow,
    "memtool plot": tables.PointRow,
    "memtool info": tables.FileRow,
    "memtool info --layers": tables.LayerRow,
    "memtool reproduce": tables.FindingRow,
    "memtool reproduce (steps.csv)": tables.StepRow,
}


def pages() -> dict[Path, str]:
    """The text of every file by its path from the project's root."""
    group: Any = typer.main.get_command(app)
    result = {Path("man/memtool.1"): _page(group, "memtool", sorted(group.commands))}
    for name, command in group.commands.items():
        result[Path(f"man/memtool-{name}.1")] = _page(command, f"memtool {name}", ["memtool"])
    result[Path("man/memtool-formats.5")] = _formats()
    names = {"bash": "memtool", "zsh": "_memtool", "fish": "memtool.fish"}
    for shell, name in names.items():
        result[Path("completions") / name] = _completion(shell)
    return result


def _completion(shell: str) -> str:
    generate: Any = typer.completion.get_completion_script  # type: ignore[attr-defined]
    script: str = generate(
        prog_name="memtool", complete_var="_MEMTOOL_COMPLETE", shell=shell
    ).strip()
    if shell == "zsh":
        # Autoloaded from fpath, the file runs as the function at the first TAB: it has to complete.
        script = script.replace(
            "compdef _memtool_completion memtool",
            'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then\n  _memtool_completion "$@"\n'
            "else\n  compdef _memtool_completion memtool\nfi",
        )
    return script + "\n"


def _page(command: Any, name: str, see_also: list[str]) -> str:
    context = command.make_context(
        name, [], resilient_parsing=True, help_option_names=["-h", "--help"]
    )
    summary, *paragraphs = command.help.replace("\b\n", "\b").split("\n\n")
    examples = [text[1:] for text in paragraphs if text.startswith("\b")]
    usage = " ".join(command.collect_usage_pieces(context))
    title = name.replace(" ", "-")
    parameters = [record for p in command.get_params(context) if (record := _record(p, context))]
    lines = [
        f'.TH {title.upper()} 1 "" "memtool {__version__}" "memtool"',
        ".SH NAME",
        f"{_escape(title)} \\- {_escape(_lower(summary))}",
        ".SH SYNOPSIS",
        f".B {_escape(name)}",
        _escape(usage),
        ".SH DESCRIPTION",
        *_paragraphs([text for text in paragraphs if not text.startswith("\b")]),
    ]
    if commands := getattr(command, "commands", {}):
        records = [(f"memtool {key}", one.help.split("\n")[0]) for key, one in commands.items()]
        lines += [".SH COMMANDS", *_tagged(dict(sorted(records)))]
    lines += [".SH OPTIONS", *_tagged(dict(parameters)), *_columns(name), ".SH EXAMPLES"]
    for text in examples:
        lines += [".nf", *map(_escape, text.split("\n")[1:]), ".fi"]
    if commands:
        sections = {"EXIT STATUS": EXIT_STATUS, "ENVIRONMENT": ENVIRONMENT, "FILES": FILES}
        for section, entries in sections.items():
            lines += [f".SH {section}", *_tagged(entries)]
    others = [f"memtool-{other}" if commands else other for other in see_also]
    lines += [".SH SEE ALSO", *(f".BR {_escape(other)} (1)," for other in others)]
    lines += [f".BR {_escape('memtool-formats')} (5),"] if commands else []
    return "\n".join(lines).removesuffix(",") + "\n"


def _columns(name: str) -> list[str]:
    """The section on the columns of the rows that a command prints; empty if it prints none."""
    printed = {line: row for line, row in ROWS.items() if re.split(" --| [(]", line)[0] == name}
    lines = [".SH COLUMNS"] if printed else []
    for line, row_type in printed.items():
        if len(printed) > 1:
            lines.append(f".SS {_escape(line)}")
        lines.append(_escape(f"Each row describes {_lower(row_type.__doc__ or '')}"))
        lines += _tagged(
            {
                f"{column} ({tables.type_of(row_type, column)})": _upper(declared.meaning)
                for column, declared in tables.columns(row_type).items()
            }
        )
    return lines


def _formats() -> str:
    """The page on the metadata of each kind of file; what it has told it does not repeat."""
    told: list[Fields] = []
    lines = [
        f'.TH MEMTOOL-FORMATS 5 "" "memtool {__version__}" "memtool"',
        ".SH NAME",
        _escape("memtool-formats") + " \\- metadata of the files of memtool",
        ".SH DESCRIPTION",
        *_paragraphs(FORMATS),
        ".SH EVERY FILE",
        *_fields(HEADER, told),
    ]
    for name, kind in KINDS.items():
        lines += [f".SH {name.upper()}", _escape(f"{_upper(kind.meaning)}.")]
        lines += [".PP", _escape(f"Tensors: {kind.tensors}."), *_fields(kind.fields, told)]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR memtool (1)"]) + "\n"


def _fields(fields: Fields, told: list[Fields]) -> list[str]:
    return _tagged(
        {
            f"{place} ({one.type.words}{', required' if one.required else ''})": _upper(one.meaning)
            for place, one in places(fields, told)
        }
    )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _record(parameter: Any, context: Any) -> tuple[str, str] | None:
    found: tuple[str, str] | None = parameter.get_help_record(context)
    return found


def _paragraphs(texts: list[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += [".PP", *map(_escape, text.split("\n"))]
    return lines[1:]


def _tagged(entries: dict[str, str]) -> list[str]:
    return [
        line
        for tag, text in entries.items()
        for line in (".TP", f".B {_escape(tag)}", _escape(text))
    ]


def _escape(text: str) -> str:
    """Text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\\&" + text if text.startswith(".") else text


def stale() -> str:
    """The differences between the files and what they should be, as a unified diff."""
    result: list[str] = []
    expected = pages()
    for path in sorted(expected.keys() | _on_disk()):
        file = ROOT / path
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        new = expected.get(path, "")
        result += difflib.unified_diff(
            old.splitlines(),
            new.splitlines(),
            f"{path} (on disk)",
            f"{path} (expected)",
            lineterm="",
        )
    return "\n".join(result)


def _on_disk() -> set[Path]:
    """The files in both folders, from the project's root; man/figures is the README's."""
    folders = (ROOT / "man", ROOT / "completions")
    return {
        path.relative_to(ROOT) for folder in folders for path in folder.glob("*") if path.is_file()
    }


def write() -> None:
    expected = pages()
    for path in _on_disk() - expected.keys():
        (ROOT / path).unlink()
    for path, text in expected.items():
        with replacing(ROOT / path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            write()
        case ["--check"]:
            if difference := stale():
                print(difference)
                sys.exit("man/ or completions/ are stale; run: python -m memtool.manual")
        case _:
            sys.exit("usage: python -m memtool.manual [--check]")
