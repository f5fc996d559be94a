"""Bytes from any store, by address: local files through `os.pread`, all else through fsspec.

An address is a local path or a URL whose scheme is on a short list. Nothing here runs a shell, and chained or unknown
schemes are refused, so that a manifest cannot name more than data. Remote reads are tried again until a deadline, keep
what had arrived, and never mix two contents of one object.
"""

from data_pipelines.storage.access import (
    Reader,
    exists,
    fingerprint,
    glob,
    modified_before,
    names_in,
    open_reader,
    read_bytes,
    write_bytes,
)
from data_pipelines.storage.address import SCHEMES, join, local_path
from data_pipelines.storage.node import cache_folder, locked, once
from data_pipelines.storage.settings import DEFAULTS, Storage

__all__ = [
    "DEFAULTS",
    "SCHEMES",
    "Reader",
    "Storage",
    "cache_folder",
    "exists",
    "fingerprint",
    "glob",
    "join",
    "local_path",
    "locked",
    "modified_before",
    "names_in",
    "once",
    "open_reader",
    "read_bytes",
    "write_bytes",
]
