"""The tokenizer of a run's data, for those who use its network."""

from __future__ import annotations

from data_pipelines.base import UserError
from data_pipelines.manifest import read_manifest
from data_pipelines.storage import join, read_bytes
from pretrain.run.directory import RunDirectory

FILES = ("tokenizer.json", "tokenizer_config.json")


def tokenizer_files(run: RunDirectory) -> dict[str, bytes]:
    """What `AutoTokenizer` opens, by file name; empty where the run read no text, or its data is no longer there."""
    info = run.info()
    digest = info["facts"].get("tokenizer_digest")
    for path in info.get("data_paths", {}).values() if digest else ():
        try:
            if read_manifest(path).facts.tokenizer_digest == digest:
                return {name: read_bytes(join(path, name)) for name in FILES}
        except (OSError, UserError):
            continue
    return {}
