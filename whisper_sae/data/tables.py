"""A table that came with a corpus, whatever wrote it: CSV, JSON lines or parquet, as columns of text.

An empty field is an empty string and `NA` is a word. What is wrong with a table is told with its line.
"""

import csv
import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from whisper_sae.stats.effects import tidy


class BadSpeech(ValueError):
    """A sound file or table that cannot be used; the message is one line and names the file or the field."""

    def __init__(self, said: str):
        super().__init__(plain(said))


def plain(text) -> str:
    """Text on one line: what cannot be printed, such as a line break in a file's name, is written as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def read(path: Path, **form) -> pd.DataFrame:
    """A table of text; `form` goes to `csv.reader`. Raises BadSpeech for what is not a table, or has no columns."""
    if path.suffix == ".jsonl":
        return _jsonl(path)
    if path.suffix != ".parquet":
        return _csv(path, **form)
    try:
        raw = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise BadSpeech(f"{path}: not a parquet table: {error}") from None
    return pd.DataFrame({str(name): [_told(value) for value in raw[name]] for name in raw}, dtype=str)


def need(path: Path, table: pd.DataFrame, name: str) -> None:
    """BadSpeech if a table read from `path` has no column of that name; it says which it has."""
    if name in table:
        return
    told = ", ".join(table.columns)
    mark = next((mark for mark in ";\t|" if len(table.columns) == 1 and mark in told), None)
    way_out = f"; its fields must be parted by commas, not by {mark!r}" if mark and path.suffix == ".csv" else ""
    raise BadSpeech(f"{path}: no column {name!r}; it has {told[:200]}{way_out}")


def lines(path: Path, newline: str | None = None) -> Iterable[str]:
    """The lines of a text file in UTF-8, with a byte order mark or without; `newline` as `open` takes it."""
    try:
        text = content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSpeech(f"{path}: not a table in UTF-8: {error}; save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadSpeech(f"{path}: line {line}: a zero byte, so it is not a text file, or a damaged one")
    return io.StringIO(text, newline=newline)


def content(path: Path) -> bytes:
    """The bytes of a file; BadSpeech for what is not a regular file, such as a pipe, or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadSpeech(f"{path}: not a regular file")
        return Path(path).read_bytes()
    except OSError as error:
        raise BadSpeech(f"{path}: cannot be read: {error.strerror}") from None


def is_missing(labels) -> np.ndarray:
    """Whether a label says nothing, see `effects.MISSING`: an array of bool."""
    return tidy(labels) == ""


def one_spelling(values: pd.Series) -> pd.Series:
    """Text whose values differ in case or spaces alone as the most frequent spelling of each, without stray spaces."""
    counts = values.str.split().str.join(" ").value_counts()
    if len(counts) == len(values):  # names, not labels
        return values
    counts = counts.sort_index().sort_values(ascending=False, kind="stable")
    best = dict(zip(counts.index.str.casefold()[::-1], counts.index[::-1], strict=True))
    each = {value: best[" ".join(value.split()).casefold()] for value in values.unique()}
    return values.map(each)


def _csv(path: Path, **form) -> pd.DataFrame:
    text = [*lines(path, newline="")]
    reader, rows, first = csv.reader(text, strict=True, **form), [], 1
    try:
        header = [name.strip() for name in next(reader, [])]
        first = reader.line_num + 1
        for fields in reader:
            if len(fields) > len(header):
                raise BadSpeech(f"{path}: line {first}: {len(fields)} fields, the header has {len(header)}")
            if 0 < len(fields) < len(header) and not text[reader.line_num - 1].endswith(("\n", "\r")):
                raise BadSpeech(
                    f"{path}: line {first}: the file ends after {len(fields)} of {len(header)} fields of a row"
                )
            if (inner := _row_within(text[first : reader.line_num], len(header), form)) is not None:
                raise BadSpeech(
                    f"{path}: line {first}: a quotation mark that opens there takes in line {first + 1 + inner}, which "
                    "looks like a row of its own; close it, double it within quotes, or take out the line break"
                )
            if fields:
                rows.append(fields + [""] * (len(header) - len(fields)))
            first = reader.line_num + 1
    except csv.Error as error:
        raise BadSpeech(
            f"{path}: line {first}: not a CSV table: {error}; a quotation mark within a field must be doubled and the "
            "field quoted"
        ) from None
    if not header:
        raise BadSpeech(f"{path}: the table is empty")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise BadSpeech(f"{path}: two columns are called {twice[0]!r}")
    named = [place for place, name in enumerate(header) if name]  # a column without a name holds row numbers
    return pd.DataFrame({header[place]: [row[place] for row in rows] for place in named}, dtype=str)


def _row_within(text: list[str], width: int, form: dict) -> int | None:
    """Which of the lines that a quoted field goes on over looks like a row: it has as many fields, and either no
    quotation mark or one where a field begins, which is then taken for the end of the quoted one."""
    mark = form.get("delimiter", ",")
    for place, line in enumerate(text):
        before, quote, _ = line.partition('"')
        if line.count(mark) + 1 >= width > 1 and (not quote or before.endswith(mark)):
            return place
    return None


def _jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise BadSpeech(f"{path}: line {number}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise BadSpeech(f"{path}: line {number}: not a JSON object")
        rows.append({name: _told(value) for name, value in fields.items()})
    return pd.DataFrame(rows, dtype=str).fillna("")


def _without_repeats(pairs: list[tuple]) -> dict:
    """A JSON object; ValueError where a field is there twice, of which the first would be lost."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


def _told(value) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return "" if value is None or value != value else str(value).encode(errors="replace").decode()  # no half of a pair
