"""One line on the terminal for each notebook that runs."""

import re
import shutil
import threading
import time

from nbconvert.filters import strip_ansi


class Terminal:
    """Where the lines of notebooks are printed, several of which may run at a time, each in a thread of its own.

    On a terminal the notebooks that run share one line, rewritten in place; elsewhere (a log file) each repeats its
    own at most twice a minute.
    """

    def __init__(self, stream):
        self.stream, self.live = stream, stream.isatty()
        self.running: list[Line] = []
        self.lock = threading.RLock()

    def show(self, line: "Line") -> None:
        """Print what has become of a line."""
        with self.lock:
            if self.live:
                wide = (shutil.get_terminal_size().columns - 1) // len(self.running)
                texts = [f"{one.text[: wide - 2]:{wide}}" for one in self.running[:-1]]
                texts.append(self.running[-1].text[:wide])
                print(f"\r\x1b[2K{''.join(texts)}", end="", file=self.stream, flush=True)
            elif time.monotonic() - line.shown > 30:
                print(line.text, file=self.stream, flush=True)
                line.shown = time.monotonic()

    def end(self, line: "Line", text: str) -> None:
        """Print the last state of a line, which stays above those that still run."""
        with self.lock:
            self.running.remove(line)
            clear = "\r\x1b[2K" if self.live else ""
            print(f"{clear}{text}", file=self.stream, flush=True)
            if self.live and self.running:
                self.show(self.running[-1])


class Line:
    """The line of one notebook: its cell, that cell's section, and any progress bar."""

    def __init__(self, terminal: Terminal, name: str, node):
        self.terminal, self.name, self.total = terminal, name, len(node.cells) + 1
        self.where = self.section = self.bar = ""
        self.shown = time.monotonic()
        with terminal.lock:
            terminal.running.append(self)

    @property
    def text(self) -> str:
        """All of it, however narrow the terminal."""
        return "  ".join(part for part in (self.name, self.where, self.section, self.bar) if part)

    def cell(self, cell, cell_index):
        """Called by papermill before each cell."""
        found = re.search(r"^#{1,3} +(.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        self.section = found[1].strip() if found else self.section
        self.where, self.bar = f"{cell_index + 1}/{self.total}", ""
        self.terminal.show(self)

    def write(self, text: str):
        """Called by papermill with what the notebook writes to stderr, progress bars above all."""
        latest = re.split(r"[\r\n]", strip_ansi(text).rstrip("\r\n"))[-1].strip()
        self.bar = re.sub(r"\|[^|]*\|", "", latest) or self.bar  # the numbers of a bar, without its blocks
        self.terminal.show(self)

    def flush(self):
        """Nothing is held back."""

    def end(self, word: str, took: str):
        """The last state of the line, which stays."""
        self.terminal.end(self, f"{self.name}  {word}  {self.total} cells  {took}")
