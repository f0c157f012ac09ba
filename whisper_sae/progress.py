"""One line on the terminal for each notebook that runs."""

import re
import shutil
import time

from nbconvert.filters import strip_ansi


class Line:
    """The line of one notebook on the terminal: its cell, that cell's section, and any progress bar.

    On a terminal it is rewritten in place; elsewhere (a log file) it is repeated at most twice a minute.
    """

    def __init__(self, stream, name: str, node):
        self.stream, self.name, self.total = stream, name, len(node.cells) + 1
        self.live = stream.isatty()
        self.where = self.section = self.bar = ""
        self.shown = time.monotonic()

    def cell(self, cell, cell_index):
        """Called by papermill before each cell."""
        found = re.search(r"^#{1,3} +(.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        self.section = found[1].strip() if found else self.section
        self.where, self.bar = f"{cell_index + 1}/{self.total}", ""
        self._show()

    def write(self, text: str):
        """Called by papermill with what the notebook writes to stderr, progress bars above all."""
        said = re.split(r"[\r\n]", strip_ansi(text).rstrip("\r\n"))[-1].strip()
        self.bar = re.sub(r"\|[^|]*\|", "", said) or self.bar  # the numbers of a bar, without its blocks
        self._show()

    def flush(self):
        """Nothing is held back."""

    def end(self, word: str, took: str):
        """The last state of the line, which stays."""
        clear = "\r\x1b[2K" if self.live else ""
        print(
            f"{clear}{self.name}  {word}  {self.total} cells  {took}",
            file=self.stream,
            flush=True,
        )

    def _show(self):
        line = "  ".join(part for part in (self.name, self.where, self.section, self.bar) if part)
        if self.live:
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[2K{line}", end="", file=self.stream, flush=True)
        elif time.monotonic() - self.shown > 30:
            print(line, file=self.stream, flush=True)
            self.shown = time.monotonic()
