"""The one look of every HTML page: its frame, its style sheet and its tables. No scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from pages.palette import variables

_STYLE = """
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1240px;
  margin: 0 auto; padding: 2rem 1rem 4rem; }
h1, h2, h3, p, li, summary, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.3; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
section + section { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 2rem; }
p { margin: .4rem 0 .8rem; max-width: 75ch; } ul { padding-left: 1.2rem; max-width: 75ch; }
a { color: var(--series-0); }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; }
pre { background: var(--panel); border: 1px solid var(--line); padding: .8rem 1rem; margin: .4rem 0; overflow-x: auto;
  max-width: 60rem; }
.soft, figcaption { color: var(--soft); } figcaption { font-size: .85rem; line-height: 1.4; max-width: 75ch; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.good, .bad, .warn { font-weight: 600; }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
.scroll:focus-visible, pre:focus-visible { outline: 2px solid var(--series-0); }
table { border-collapse: collapse; min-width: min(100%, 40rem); font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .87rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--ground); }
th.text, td.text { text-align: left; white-space: normal; min-width: 16rem; }
tr.chosen td { background: var(--panel); font-weight: 600; } tr.chosen td:first-child { padding-left: .5rem; }
small { color: var(--soft); font-size: .82rem; font-weight: 400; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 2rem 2.5rem; }
figure { margin: 0; } figure h3 { margin-top: 0; } svg { display: block; width: 100%; max-width: 520px; height: auto; }
details { border-top: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) { th:first-child, td:first-child { white-space: normal; min-width: 9rem; max-width: 60vw;
  overflow-wrap: break-word; } }
"""


def page(title: str, body: str) -> str:
    """Return a whole document.

    Args:
        title: Text.
        body: HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{variables()}{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, chosen: int | None = None, prose: int | None = None
) -> str:
    """Return a table that scrolls by itself where it is wider than the page; its first column stays in sight.

    Args:
        head: Texts.
        rows: HTML.
        chosen: The row that stands out.
        prose: The column whose cells are sentences, which wrap.
    """
    marks = [' class="text"' if place == prose else "" for place in range(len(head))]
    heads = "".join(f"<th{mark}>{escape(cell)}</th>" for mark, cell in zip(marks, head, strict=True))
    body = ""
    for at, row in enumerate(rows):
        cells = "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True))
        body += f'<tr class="chosen">{cells}</tr>' if at == chosen else f"<tr>{cells}</tr>"
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
