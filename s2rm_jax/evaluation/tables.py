"""A table of text that is written as plain text, Markdown, LaTeX or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

NOTHING = "–"  # the cell of a missing number

_MARKDOWN, _ESCAPED = re.compile(r"([*_`<>\\])"), r"\\\1"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NOTHING: "--"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """A table; all cells are text.

    Attributes:
        caption: one line
        header: the titles of the columns
        rows: the cells, row by row
        rules: the indices of the rows above which a line is drawn
        strong: the index of the row to emphasize, or None
        text_columns: the first columns, which are left-aligned; the others hold numbers
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()
    strong: int | None = None
    text_columns: int = 1


def without(table: Table, column: str) -> Table:
    """Return the table without one of its text columns, given by its title."""
    index = table.header.index(column)
    header, *rows = (cells[:index] + cells[index + 1 :] for cells in (table.header, *table.rows))
    return replace(table, header=header, rows=tuple(rows), text_columns=table.text_columns - 1)


def as_text(table: Table) -> str:
    """Return the table as aligned plain text, without its caption."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            f"{cell:{width}}" if index < table.text_columns else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [line(table.header), rule]
    for index, row in enumerate(table.rows):
        lines += [rule, line(row)] if index in table.rules else [line(row)]
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, below its caption."""
    head, *rows = ([_MARKDOWN.sub(_ESCAPED, cell) for cell in cells] for cells in (table.header, *table.rows))
    marks = [":--" if index < table.text_columns else "--:" for index in range(len(head))]
    return f"**{table.caption}**\n\n{markdown_table(head, rows, marks)}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], marks: Sequence[str] = ()) -> str:
    """Return a table in GitHub's Markdown. Its cells are Markdown, in which `|` is escaped.

    `marks` are the marks of the alignment of each column; without them it is that of the renderer.
    """
    head, *rows = ([cell.replace("|", r"\|") for cell in cells] for cells in (head, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks or ["---"] * len(head), *rows))


def as_latex(table: Table) -> str:
    """Return the table in LaTeX; it needs the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return f"    {' & '.join(map(_latex, cells))} \\\\"

    columns = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    body = []
    for index, row in enumerate(table.rows):
        body += ["    \\midrule"] if index in table.rules else []
        body.append(line(row))
    rows = "\n".join(body)
    return rf"""\begin{{table}}
  \centering
  \caption{{{_latex(table.caption)}}}
  \begin{{tabular}}{{{columns}}}
    \toprule
{line(table.header)}
    \midrule
{rows}
    \bottomrule
  \end{{tabular}}
\end{{table}}"""


def as_html(table: Table) -> str:
    """Return the table as an HTML figure; `strong` and `rules` are classes of its rows."""

    def cells(row: Sequence[str], tag: str) -> str:
        marks = [" class=text" if index < table.text_columns else "" for index in range(len(row))]
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, row, strict=True))

    body = []
    for index, row in enumerate(table.rows):
        names = [*(["strong"] if index == table.strong else []), *(["rule"] if index in table.rules else [])]
        mark = f' class="{" ".join(names)}"' if names else ""
        body.append(f"<tr{mark}>{cells(row, 'td')}</tr>")
    caption = f"<figcaption>{escape(table.caption)}</figcaption>" if table.caption else ""
    return (
        f'<figure class="scroll">{caption}<table>'
        f"<thead><tr>{cells(table.header, 'th')}</tr></thead><tbody>{''.join(body)}</tbody></table></figure>"
    )


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
