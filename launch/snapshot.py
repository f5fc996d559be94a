"""The code a job runs is the code it was submitted with: a copy in the run, named by its digest.

A requeued job imports everything anew, perhaps days later; edits made meanwhile must not reach it.
Jobs of the same code share one copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""`python -m` would look into the working folder first, and find the checkout instead of the copy."""

PACKAGES = ("data_pipelines", "pretrain", "evals", "launch")


def code_folder(run: Path) -> Path:
    """Where the copy of the present code lies, or would lie."""
    digest = hashlib.blake2b(digest_size=8)
    for name, path in _files():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return run.absolute() / "logs" / "code" / digest.hexdigest()


def take_snapshot(run: Path) -> Path:
    """Make sure the copy is there; returns its folder, which goes to the front of PYTHONPATH."""
    folder = code_folder(run)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    for name, path in _files():
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    partial.chmod(0o755)
    try:
        partial.rename(folder)
    except OSError:  # another submission of the same code was first
        shutil.rmtree(partial)
    return folder


def _files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(Path(package) / path.relative_to(root)), path
