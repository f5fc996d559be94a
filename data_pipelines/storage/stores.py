"""The stores behind fsspec: one object asked for by ranges, every failure as one of four kinds.

FileNotFoundError and PermissionError are answers, any other OSError is worth another try, and DataError ends the run:
an object that was replaced under it, or credentials that are no longer good.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import fsspec

from data_pipelines.base import DataError, UserError
from data_pipelines.storage.address import is_web, join, store_name
from data_pipelines.storage.retry import Health

CONNECT_S = 10.0
SILENCE_S = 20.0
"""Without a byte for so long, a connection is given up and another one opened."""
IN_FLIGHT = 32
"""Connections a process keeps to a store."""
READ_BYTES = 1 << 16
SPENT_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
"""S3's codes for keys that are wrong or no longer good, as opposed to keys that open other objects only."""

Result = TypeVar("Result")


class Head(NamedTuple):
    """What names the content of an object."""

    size: int
    """Bytes."""
    tag: str
    """Entity tag, or whatever else changes with the content; "" where the store has nothing of the kind."""


class Store:
    """A store that compares no tags at reading, such as memory://; there the samples' digests notice other bytes."""

    def __init__(self, files: Any, address: str) -> None:
        self.files = files
        self.name = store_name(address)
        self.health = Health(self.name, lambda path: self.head(path, CONNECT_S))

    def head(self, path: str, timeout_s: float) -> Head:
        """Size and tag of an object."""
        facts = self.files.info(path)
        tag = " ".join(str(facts[name]) for name in ("etag", "ETag", "mtime", "created") if name in facts)
        return Head(int(facts["size"]), tag)

    def read(self, path: str, start: int, stop: int, tag: str, arrived: bytearray, timeout_s: float) -> None:
        """Append bytes [start, stop) to `arrived`, as they come.

        Raises:
            DataError: the object's tag is another one by now.
        """
        arrived += self.files.cat_file(path, start=start, end=stop)

    def exists(self, path: str, timeout_s: float) -> bool:
        """Whether there is such an object or folder."""
        return bool(self.files.exists(path))

    def names(self, path: str, timeout_s: float) -> list[str]:
        """Sorted names directly below a folder."""
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in self.files.ls(path, detail=False))

    def glob(self, path: str, timeout_s: float) -> list[str]:
        """Sorted addresses that match a pattern."""
        return sorted(self.files.unstrip_protocol(match) for match in self.files.glob(path))

    def write(self, path: str, content: bytes, timeout_s: float) -> None:
        """Put an object there as a whole; a reader sees the old one or the new one."""
        self.files.pipe_file(path, content)

    def _replaced(self, path: str, tag: str, now: str) -> DataError:
        return DataError(
            f"{join(self.name, path)} was replaced while it was read (tag {tag}, now {now or 'another'}): "
            f"changed data is a new run"
        )


class S3Store(Store):
    """S3 and what speaks like it; credentials, endpoint and region are found as every S3 tool finds them."""

    def head(self, path: str, timeout_s: float) -> Head:
        """See `Store.head`."""
        return self._ask(lambda: self._head(path), timeout_s)

    def read(self, path: str, start: int, stop: int, tag: str, arrived: bytearray, timeout_s: float) -> None:
        """See `Store.read`."""
        self._ask(lambda: self._read(path, start, stop, tag, arrived), timeout_s)

    def exists(self, path: str, timeout_s: float) -> bool:
        """See `Store.exists`."""
        return self._ask(lambda: self.files._exists(path), timeout_s)

    def names(self, path: str, timeout_s: float) -> list[str]:
        """See `Store.names`."""
        entries = self._ask(lambda: self.files._ls(path), timeout_s)
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def glob(self, path: str, timeout_s: float) -> list[str]:
        """See `Store.glob`."""
        return sorted(f"s3://{match}" for match in self._ask(lambda: self.files._glob(path), timeout_s))

    def write(self, path: str, content: bytes, timeout_s: float) -> None:
        """See `Store.write`."""
        self._ask(lambda: self.files._pipe_file(path, content), timeout_s)

    async def _head(self, path: str) -> Head:
        """From a GET of one byte: refusals of a HEAD carry no reason."""
        try:
            answer = await self._get(path, 0, 1)
        except OSError as error:
            if _s3_code(error) == "InvalidRange":  # an empty object has no first byte
                return Head(0, "")
            raise
        answer["Body"].close()
        return Head(int(answer["ContentRange"].rpartition("/")[2]), str(answer.get("ETag", "")))

    async def _read(self, path: str, start: int, stop: int, tag: str, arrived: bytearray) -> None:
        try:
            answer = await self._get(path, start, stop, **({"IfMatch": tag} if tag else {}))
        except OSError as error:
            if _s3_code(error) == "PreconditionFailed":
                raise self._replaced(path, tag, "") from None
            raise
        try:
            if tag and answer.get("ETag") != tag:  # some stores know no If-Match
                raise self._replaced(path, tag, answer.get("ETag", ""))
            async for block in answer["Body"].iter_chunks(READ_BYTES):
                arrived += block
        finally:
            answer["Body"].close()

    async def _get(self, path: str, start: int, stop: int, **conditions: str) -> dict[str, Any]:
        bucket, key, _ = self.files.split_path(path)
        answer: dict[str, Any] = await self.files._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **conditions
        )
        return answer

    def _ask(self, call: Callable[[], Awaitable[Result]], timeout_s: float) -> Result:
        return wait(self.files, lambda: self._with_fresh_credentials(call), timeout_s)

    async def _with_fresh_credentials(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """The library renews what it can; files and the environment are looked at anew once."""
        try:
            return await _in_words(call)
        except OSError as error:
            if _s3_code(error) not in SPENT_CREDENTIALS:
                raise
        await self.files.set_session(refresh=True)
        try:
            return await _in_words(call)
        except OSError as error:
            if _s3_code(error) not in SPENT_CREDENTIALS:
                raise
            raise DataError(
                f"{self.name}: the credentials are refused ({_s3_code(error)}: {error}); renew them and start again"
            ) from None


async def _in_words(call: Callable[[], Awaitable[Result]]) -> Result:
    """What botocore and aiohttp raise, as OSErrors."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
    from s3fs.errors import translate_boto_error

    try:
        return await call()
    except NoCredentialsError:
        raise UserError("s3: no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret") from None
    except ParamValidationError as error:
        raise UserError(f"s3: {' '.join(str(error).split())}") from None
    except ClientError as error:
        raise translate_boto_error(error) from error
    except (TimeoutError, BotoCoreError, aiohttp.ClientError) as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def _s3_code(error: OSError) -> str:
    """The code in an S3 answer, "" where the error is none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def wait(files: Any, call: Callable[[], Awaitable[Result]], timeout_s: float) -> Result:
    """Run a coroutine on fsspec's loop; TimeoutError when it takes longer."""
    try:
        return fsspec.asyn.sync(files.loop, call, timeout=max(timeout_s, 1.0))
    except fsspec.FSTimeoutError:
        raise TimeoutError(f"not done within {timeout_s:.0f} s") from None


_stores: dict[tuple[int, str], Store] = {}


def store_of(address: str) -> tuple[Store, str]:
    """The store of a remote address, one a process, and the path inside it.

    Raises:
        UserError: the library that speaks to it is not installed.
    """
    key = (os.getpid(), store_name(address))  # connections do not survive a fork
    if key not in _stores:
        _stores[key] = _open_store(address)
    store = _stores[key]
    return store, str(store.files._strip_protocol(address))


def _open_store(address: str) -> Store:
    scheme = address.split("://", 1)[0].lower()
    try:
        if is_web(address):
            from data_pipelines.storage.web import WebStore

            return WebStore(address)
        if scheme == "s3":
            config = {
                "connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "max_pool_connections": IN_FLIGHT,
                "retries": {"total_max_attempts": 1},
            }  # fmt: skip
            files = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config)
            files.retries = 1  # `persist` does it
            return S3Store(files, address)
        return Store(fsspec.filesystem(scheme, use_listings_cache=False), address)
    except ImportError as error:
        raise UserError(f"address {address!r}: {error}") from None
