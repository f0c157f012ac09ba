"""What must not leave the machine: where things lie on it, with the names of users and servers in them.

A report says `~`, the project's own relative paths, and of a corpus or a model its name alone.
"""

import os
import re
import sys
import sysconfig
from pathlib import Path

_ABOVE = Path(__file__).resolve().parents[1]
INSTALLED = not (_ABOVE / "notebooks").is_dir()
"""Whether the package was installed without its checkout: then notebooks, profiles and the demo lie where pip puts data
(`share/whisper_sae` of the environment), and results go to `data` and `reports` of the working directory."""

PROJECT = Path(sysconfig.get_path("data")) / "share" / "whisper_sae" if INSTALLED else _ABOVE
"""The directory with `notebooks`, `data/profiles` and `data/demo`."""


def reports() -> Path:
    """Where pages go: the project's `reports`, or WHISPER_SAE_REPORTS."""
    return Path(os.environ.get("WHISPER_SAE_REPORTS") or _results() / "reports")


def data() -> Path:
    """Where results go: the project's `data`, or WHISPER_SAE_DATA."""
    return Path(os.environ.get("WHISPER_SAE_DATA") or _results() / "data").absolute()


def _results() -> Path:
    return Path.cwd() if INSTALLED else PROJECT


def hidden(text: str, places: tuple[str, ...] = ()) -> str:
    """Text without absolute paths of this project, its data and reports, Python, the home directory, or the folders
    that `places` (files or directories that a profile names) lie in."""
    for folder, shown in sorted(_known(places).items(), key=lambda pair: -len(pair[0])):
        if folder in text:
            # not within a longer path, nor within the base64 of a picture
            text = re.sub(rf"(?<![\w.~+/-]){re.escape(folder)}(?![\w.+-])", lambda _match, shown=shown: shown, text)
    return text


def _known(places: tuple[str, ...]) -> dict[str, str]:
    """What stands for each folder; none for the root of a file system."""
    found = {str(Path.home()): "~", sys.prefix: "python", sys.base_prefix: "python"}
    for place in places:
        bare = place.removeprefix("untrained:")
        if os.path.isabs(bare):
            found[str(Path(bare).parent)] = "…"
    if data := os.environ.get("WHISPER_SAE_DATA"):
        found[str(Path(data).absolute())] = "data"
    found |= {str(reports().absolute()): "reports", str(PROJECT): "."}
    return {folder: shown for folder, shown in found.items() if folder.strip("/")}
