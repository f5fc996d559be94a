"""Which addresses are data, and how they are put together."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from data_pipelines.base import UserError

SCHEMES = ("file", "s3", "gs", "http", "https", "memory")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(://|::)|^(pipe):")


def local_path(address: str) -> str | None:
    """The path behind a local address, None for a remote one.

    Raises:
        UserError: the scheme is not one of `SCHEMES`.
    """
    match = _SCHEME.match(address)
    if match is None:
        return address
    scheme = (match.group(1) or match.group(3)).lower()
    if scheme not in SCHEMES or match.group(2) != "://" or "::" in address:
        raise UserError(f"address {address!r}: want a path or one of {', '.join(f'{s}://' for s in SCHEMES)}")
    return address[len("file://") :] if scheme == "file" else None


def is_web(address: str) -> bool:
    """Whether it is read by http, where names are percent-encoded."""
    return address.lower().startswith(("http://", "https://"))


def store_name(address: str) -> str:
    """Scheme and host, or bucket, of a remote address: what is up or down as a whole."""
    parts = urlsplit(address)
    return f"{parts.scheme.lower()}://{parts.netloc.rsplit('@', 1)[-1]}"


def join(folder: str, name: str) -> str:
    """Address of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{quote(name) if is_web(folder) else name}"
