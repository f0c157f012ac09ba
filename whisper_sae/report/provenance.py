"""Where a run was made: by which code, when, on what, with which versions."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from whisper_sae import private_paths

PACKAGES = ("torch", "transformers")


def now() -> dict:
    """Commit, whether it had uncommitted changes, date, device and versions."""
    commit, dirty = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain")
    return {
        "commit": commit or "unknown",
        "dirty": bool(dirty),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", private_paths.PROJECT, *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _device() -> str:
    """What is there to compute with."""
    cores = f"{os.cpu_count()} {platform.machine()} cores"
    if not may_have_gpu():
        return cores
    try:
        import torch
    except ImportError:
        return cores
    return f"{torch.cuda.get_device_name(0)} and {cores}" if torch.cuda.is_available() else cores


def may_have_gpu() -> bool:
    """Whether torch might find a GPU here: told without importing it, which takes seconds."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return sys.platform != "linux" or any(Path(driver).exists() for driver in drivers)
