# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

r"""Tables of the report in LaTeX. They require ``\usepackage{booktabs}``."""

from .tables import Cell, Table

BEGIN, END = r"\begin{table}", r"\end{table}"
REPLACEMENTS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\n": " ",
    "\N{NO-BREAK SPACE}": "~",
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{EN DASH}": "--",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
}


def escape_latex(text: str) -> str:
    r"""Return text with the special characters of LaTeX escaped.

    Example:
        >>> escape_latex("elpv_mono & 5 %")
        'elpv\\_mono \\& 5 \\%'
    """
    return "".join(REPLACEMENTS.get(character, character) for character in text)


def to_latex(table: Table, label: str) -> str:
    """Return a table as a LaTeX ``table`` environment with the rules of booktabs.

    Args:
        table (Table): The table.
        label (str): Label for references, made of letters, digits, ``-`` and ``_``.
    """
    alignment = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    lines = [
        "% Requires \\usepackage{booktabs}.",
        BEGIN,
        r"  \centering",
        rf"  \caption{{{escape_latex(table.caption)}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        _row([escape_latex(name) for name in table.header]),
        r"    \midrule",
    ]
    lines += [_row([_cell(cell) for cell in row]) for row in table.rows]
    if table.foot:
        lines.append(r"    \midrule")
        lines += [_row([_cell(cell) for cell in row]) for row in table.foot]
    lines += [r"    \bottomrule", r"  \end{tabular}", END]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    """Return the text in bold if it is the best, and the note in small letters."""
    text = escape_latex(cell.text)
    if cell.best:
        text = rf"\textbf{{{text}}}"
    return rf"{text} {{\scriptsize {escape_latex(cell.note)}}}" if cell.note else text


def _row(texts: list[str]) -> str:
    r"""Return a row. The empty group keeps the end of the row before from reading ``[`` or ``*`` as its argument."""
    return f"    {{}}{' & '.join(texts)} \\\\"
