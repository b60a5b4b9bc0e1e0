"""HTML from Python: elements whose text is escaped, and matplotlib's figures inside a page."""

import html
import io
import re
from typing import Any
from xml.etree import ElementTree

from matplotlib.figure import Figure

from memtool.errors import printable
from memtool.figures import save

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VOID = ("meta",)  # elements without an end


class Markup(str):
    """HTML that goes into a page as it is; any other text is escaped."""


def element(name: str, /, *children: str, **attributes: str) -> Markup:
    """An element with its children; a child that is no `Markup` is text.

    Attributes are spelled as in Python: `class_`, `aria_label`.

    >>> element("p", "1 < 2, ", element("b", "yes"), class_="a")
    '<p class="a">1 &lt; 2, <b>yes</b></p>'
    """
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    inside = joined(*children)
    return Markup(f"<{name}{named}>" + ("" if name in VOID else f"{inside}</{name}>"))


def joined(*children: str) -> Markup:
    """Several pieces of a page as one."""
    return Markup("".join(c if isinstance(c, Markup) else escaped(c) for c in children))


def escaped(text: str) -> str:
    """Text as HTML has it; controls and what UTF-8 cannot write are shown as escapes."""
    return html.escape(printable(text))


def inline(figure: Figure, name: str, title: str) -> Markup:
    """A figure as an SVG element that takes the width of its place.

    `name` is put before its ids, since a page has several figures; `title` says what it shows to
    those who do not see it.
    """
    stream = io.BytesIO()
    save(figure, stream, "svg")
    root = ElementTree.fromstring(stream.getvalue())
    _remove(root, "metadata")
    _remove(root, "style")  # it would be that of the whole page, whose style says the same
    for part in root.iter():
        for key, value in part.attrib.items():
            part.set(key, _renamed(key, value, f"{name}-"))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title",
    }
    told = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{name}-title"})
    told.text = printable(title)
    root.insert(0, told)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _remove(root: Any, name: str) -> None:
    for parent in list(root.iter()):
        for child in parent.findall(f"{{{SVG}}}{name}"):
            parent.remove(child)


def _renamed(key: str, value: str, prefix: str) -> str:
    """An attribute with the ids that it gives or refers to after `prefix`."""
    if key == "id":
        return prefix + value
    if key in ("href", f"{{{XLINK}}}href"):
        return value.replace("#", f"#{prefix}", 1)
    return re.sub(r"url\(#", f"url(#{prefix}", value)
