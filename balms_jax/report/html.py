"""The page as HTML: its style, its frame, and a figure or a table in it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from balms_jax.report.figure_style import HALF, svg

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --plate: #ffffff; --ink: #232323; --soft: #646464; --line: #dededb;
  --sans: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;
  --serif: Charter, 'Bitstream Charter', 'Sitka Text', Cambria, Georgia, serif;
  --mono: ui-monospace, 'Cascadia Mono', Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #191a1b; --plate: #fafaf8; --ink: #e8e8e5; --soft: #a3a39f; --line: #3a3b3c; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 var(--sans); -webkit-text-size-adjust: 100%;
}
main { max-width: 1100px; margin: 0 auto; padding: 48px 28px 64px; }
h1, h2, .finding { font-family: var(--serif); text-wrap: balance; }
h1 { font-size: 2.1rem; line-height: 1.18; font-weight: 600; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; font-weight: 600; margin: 3rem 0 1rem; break-after: avoid; }
.kicker { color: var(--soft); font-size: .82rem; letter-spacing: .04em; margin: 0 0 .6rem; }
.facts { color: var(--soft); margin: 0; }
.finding { font-size: 1.22rem; line-height: 1.45; margin: 1.4rem 0 2rem; max-width: 46em;
  text-wrap: pretty; }
.problem + h2 { border-top: 1px solid var(--line); margin-top: 4rem; padding-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5em .65em; text-align: left; vertical-align: baseline; }
thead td { border-bottom: 1px solid var(--ink); }
thead th { font-weight: 500; color: var(--soft); border-bottom: 1px solid var(--ink);
  vertical-align: bottom; line-height: 1.25; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; }
th:first-child, td:first-child { padding-left: 0; }
.number { text-align: right; }
.results { font-size: .83rem; }
.results th, .results td { padding: .5em .4em; }
.results th:first-child { padding-left: 0; }
.number, .short { white-space: nowrap; }
.results tbody th { min-width: 11em; }
.results small { display: block; font-weight: 400; color: var(--soft); }
.results td.text { color: var(--soft); min-width: 8em; }
.swatch { display: inline-block; width: .72em; height: .72em; border-radius: 50%;
  margin-right: .55em; }
table.facts { color: inherit; }
table.facts tbody th { font-weight: 500; color: var(--soft); white-space: nowrap; }
.asked { color: var(--soft); max-width: 62em; margin: 1.2rem 0; }
.asked p { margin: .4rem 0; }
.note { font-size: .84rem; color: var(--soft); margin: .8rem 0 0; max-width: 62em; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem 1.6rem; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
.plate { background: var(--plate); border: 1px solid var(--line); border-radius: 6px;
  padding: 10px; overflow-x: auto; }
@media (prefers-color-scheme: light) { .plate { background: none; border: 0; padding: 0; } }
img { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; line-height: 1.45; color: var(--soft); margin-top: .6rem;
  max-width: 62em; }
details { border-top: 1px solid var(--line); padding: .6rem 0; font-size: .88rem; }
table + details, .scroll + details { margin-top: 1.4rem; }
summary { cursor: pointer; color: var(--soft); }
pre, code { font-family: var(--mono); font-size: .92em; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; }
footer { margin-top: 3.5rem; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
@media screen and (max-width: 760px) {
  main { padding: 28px 16px 48px; }
  h1 { font-size: 1.6rem; }
  .figures { grid-template-columns: 1fr; }
  figure.wide img { min-width: 680px; }
}
@media print {
  :root { --paper: #fff; --plate: #fff; --ink: #000; --soft: #444; --line: #ccc; }
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  .scroll, .plate { overflow: visible; }
  h2 { margin-top: 1.6rem; }
}
"""


def document(title: str, body: str, footer: str) -> str:
    """A whole self-contained page, which needs no network and no scripts.

    Args:
        title: plain text.
        body: HTML.
        footer: HTML.

    Returns:
        The document.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<p class="kicker">balms_jax · long-tailed recognition</p>
<h1>{escape(title)}</h1>
</header>
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""


def embedded(drawing: Figure, caption: str, alt: str) -> str:
    """A figure with its caption, embedded as SVG."""
    width, height = (round(96 * inches) for inches in drawing.get_size_inches())
    data = base64.b64encode(svg(drawing)).decode('ascii')
    shape = 'wide' if width > 96 * HALF[0] else 'half'
    return (
        f'<figure class="{shape}"><div class="plate"><img alt="{escape(alt)}" width="{width}" '
        f'height="{height}" src="data:image/svg+xml;base64,{data}"></div>\n'
        f'<figcaption>{escape(caption)}</figcaption></figure>\n'
    )


def figure_section(heading: str, items: Sequence[str]) -> str:
    """Figures under a heading; empty if there are none."""
    return f'<h2>{heading}</h2>\n<div class="figures">{"".join(items)}</div>' if items else ''


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A plain table; the keys of all rows are the headings. Short texts stay on a line."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    heading = ''.join(f'<th scope="col">{escape(name)}</th>' for name in names)

    def cell(text: str) -> str:
        kind = ' class="short"' if len(text) < 16 else ''
        return f'<td{kind}>{escape(text)}</td>'

    lines = (''.join(cell(row.get(name, '–')) for name in names) for row in rows)
    body = ''.join(f'<tr>{line}</tr>\n' for line in lines)
    return f'<table><thead><tr>{heading}</tr></thead>\n<tbody>{body}</tbody></table>\n'
