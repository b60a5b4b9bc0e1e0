"""The page around a report: head, style, contents."""

from memtool.reproduction.markup import Markup, element, joined

# No scripts, and nothing from elsewhere; figures and the page have styles of their own.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1.25rem 3rem; background: #fff;
  color: #1a1a1a; font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
a { color: #0b4f8a; }
p, li, figcaption, dd { max-width: 46rem; }
code { font: .85rem/1.4 ui-monospace, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
nav ul { columns: 2 16rem; padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem;
  margin: .75rem 0; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .75rem 0 2rem; }
figcaption { margin-top: .5rem; }
.drawing { overflow-x: auto; }
.drawing svg { display: block; width: 100%; height: auto; }
.wide svg { min-width: 40rem; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem .4rem 0;
  border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #888; overflow-wrap: normal; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.quiet { color: #555; font-size: .88rem; font-weight: 400; }
tbody th { width: 42%; }
.verdict { white-space: nowrap; font-weight: 600; }
.holds { color: #0b5394; }
.fails { color: #a33c00; }
.undecided { color: #555; }
footer { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: .75rem; }
@media (max-width: 40rem) {
  body { padding: .5rem .9rem 2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  .wide + figcaption::before { content: "The figure scrolls sideways. "; color: #555; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .cards tr { display: block; padding: .6rem 0; border-bottom: 1px solid #bbb; }
  .cards td, .cards tbody th { display: block; width: auto; padding: .1rem 0; border: 0;
    text-align: left; white-space: normal; }
  .cards td[data-label]::before { content: attr(data-label) ": "; color: #555; }
}
@media print {
  @page { margin: 15mm; }
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, thead { break-after: avoid; }
  figure, tr, dt { break-inside: avoid; }
  .drawing { overflow: visible; }
  .wide svg { min-width: 0; }
  a { color: inherit; text-decoration: none; }
}
"""


def page(title: str, summary: Markup, sections: dict[str, tuple[str, Markup]], end: Markup) -> str:
    """An HTML page that needs nothing else: `sections` are headings and contents by their ids."""
    contents = [
        element("li", element("a", heading, href=f"#{name}"))
        for name, (heading, _) in sections.items()
    ]
    parts = [
        element("section", element("h2", heading, id=name), content)
        for name, (heading, content) in sections.items()
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("header", element("h1", title), summary),
        element("nav", element("ul", *contents), aria_label="Contents"),
        element("main", *parts),
        element("footer", end),
    )
    return joined(Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Markup("\n"))
