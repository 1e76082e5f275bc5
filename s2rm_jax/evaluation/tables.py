"""One table, four ways to write it: for the screen, Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

NOTHING = "–"  # stands where there is no number

_MARKDOWN, _ESCAPED = re.compile(r"([|*_`<>\\])"), r"\\\1"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NOTHING: "--"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """Cells as text.

    caption  one line
    rules    the numbers of the rows above which a line is drawn
    strong   the row that matters most, if there is one
    texts    so many columns, the first, hold words; the others hold numbers
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()
    strong: int | None = None
    texts: int = 1


def without(table: Table, column: str) -> Table:
    """Returns the table without a column, one of words, named by its title."""
    gone = table.header.index(column)
    header, *rows = (cells[:gone] + cells[gone + 1 :] for cells in (table.header, *table.rows))
    return replace(table, header=header, rows=tuple(rows), texts=table.texts - 1)


def as_text(table: Table) -> str:
    """Returns the table in columns of equal width, without its caption."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            f"{cell:{width}}" if index < table.texts else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [line(table.header), rule]
    for index, row in enumerate(table.rows):
        lines += [rule, line(row)] if index in table.rules else [line(row)]
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """Returns the table as GitHub's Markdown has it, below its caption."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_MARKDOWN.sub(_ESCAPED, cell) for cell in cells)} |"

    marks = [":--" if index < table.texts else "--:" for index in range(len(table.header))]
    body = [line(row) for row in table.rows]
    return "\n".join([f"**{table.caption}**", "", line(table.header), f"|{'|'.join(marks)}|", *body])


def as_latex(table: Table) -> str:
    """Returns a LaTeX table that needs the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return f"    {' & '.join(map(_latex, cells))} \\\\"

    columns = "l" * table.texts + "r" * (len(table.header) - table.texts)
    body = []
    for index, row in enumerate(table.rows):
        body += ["    \\midrule"] if index in table.rules else []
        body.append(line(row))
    return "\n".join(
        [
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{_latex(table.caption)}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            "    \\toprule",
            line(table.header),
            "    \\midrule",
            *body,
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
        ]
    )


def as_html(table: Table) -> str:
    """Returns the table as an HTML figure; the strong row has the class "strong", one below a rule "rule"."""

    def cells(row: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=text' if index < table.texts else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )
        return "".join(marked)

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
