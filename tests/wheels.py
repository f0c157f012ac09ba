"""Small wheels, and a pip that knows nothing but a folder of them."""

import zipfile
from pathlib import Path

from whisper_sae import cache
from whisper_sae.model import package_index


def alone(folder: Path) -> dict[str, str]:
    """The environment in which pip looks nowhere but in a folder."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}


def write(folder: Path, package: str, members: dict[str, bytes], version: str = "1.0.0") -> package_index.Wheel:
    """A wheel of data with these members, beside code that must never run."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{package.replace('-', '_')}-{version}"
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{package.replace('-', '_')}/__init__.py", "raise SystemExit('this has been imported')")
        archive.writestr("../outside.txt", "written outside")
        archive.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    return package_index.Wheel(package, version, path.stat().st_size, cache.file_digest(path))
