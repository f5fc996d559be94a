"""Reading by http: ranges of one entity tag, and redirects that lead nowhere private."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import fsspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from data_pipelines.base import DataError, UserError
from data_pipelines.storage.stores import CONNECT_S, IN_FLIGHT, READ_BYTES, SILENCE_S, Head, Store, wait

TRY_AGAIN = {408, 425, 429}
"""Refusals of the moment, besides all from 500 on."""


class WebStore(Store):
    """A web server that answers range requests."""

    def __init__(self, address: str) -> None:
        host = urlsplit(address).hostname or ""

        async def get_client(**settings: Any) -> aiohttp.ClientSession:
            return _session(host, **settings)

        files = fsspec.filesystem("http", get_client=get_client, use_listings_cache=False, skip_instance_cache=True)
        super().__init__(files, address)

    def head(self, path: str, timeout_s: float) -> Head:
        """See `Store.head`."""
        return wait(self.files, lambda: self._head(path), timeout_s)

    def read(self, path: str, start: int, stop: int, tag: str, arrived: bytearray, timeout_s: float) -> None:
        """See `Store.read`."""
        wait(self.files, lambda: self._read(path, start, stop, tag, arrived), timeout_s)

    def exists(self, path: str, timeout_s: float) -> bool:
        """See `Store.exists`."""
        try:
            self.head(path, timeout_s)
        except (FileNotFoundError, PermissionError):
            return False
        return True

    def names(self, path: str, timeout_s: float) -> list[str]:
        """See `Store.names`; from the server's page of the folder, if it has one."""
        with _listing():
            return sorted(unquote(name) for name in super().names(f"{path.rstrip('/')}/", timeout_s))

    def glob(self, path: str, timeout_s: float) -> list[str]:
        """See `Store.glob`."""
        with _listing():
            return super().glob(path, timeout_s)

    def write(self, path: str, content: bytes, timeout_s: float) -> None:
        """Never done."""
        raise UserError(f"{path}: a web server is only read; do this where the files lie")

    async def _head(self, url: str) -> Head:
        async with await self._get(url, 0, 1, "") as answer:
            if answer.status == 206:
                size = answer.headers.get("Content-Range", "").rpartition("/")[2]
            elif answer.status == 416:  # an empty file has no first byte
                size = answer.headers.get("Content-Range", "*/0").rpartition("/")[2]
            else:
                size = answer.headers.get("Content-Length", "")
            if not size.isdigit():
                raise DataError(f"{url}: the server does not say how long the file is")
            return Head(int(size), _tag(answer))

    async def _read(self, url: str, start: int, stop: int, tag: str, arrived: bytearray) -> None:
        async with await self._get(url, start, stop, tag) as answer:
            if tag and _tag(answer) != tag:  # many servers know no If-Match
                raise self._replaced(urlsplit(url).path.lstrip("/"), tag, _tag(answer))
            whole = answer.status == 200 and start == 0 and answer.content_length == stop
            if not whole and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise DataError(f"{self.name} answers no range requests; copy the set to a disk or to another store")
            try:
                async for block in answer.content.iter_chunked(READ_BYTES):
                    arrived += block
            except (TimeoutError, aiohttp.ClientError) as error:
                raise OSError(_words(error)) from None

    async def _get(self, url: str, start: int, stop: int, tag: str) -> aiohttp.ClientResponse:
        """The answer to a request of bytes [start, stop): 200, 206 or 416."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if tag.startswith('"'):
            headers["If-Match"] = tag
        session = await self.files.set_session()
        try:
            answer: aiohttp.ClientResponse = await session.get(self.files.encode_url(url), headers=headers)
        except aiohttp.InvalidURL as error:
            raise UserError(f"address {url!r}: {_words(error)}") from None
        except (TimeoutError, aiohttp.ClientError) as error:
            raise OSError(_words(error)) from None
        if answer.status in {200, 206, 416}:
            return answer
        answer.release()
        words = f"{url}: {answer.status} {answer.reason}"
        if answer.status in {404, 410}:
            raise FileNotFoundError(words)
        if answer.status == 401:
            raise DataError(f"{words}; renew the credentials and start again")
        if answer.status == 412:
            raise self._replaced(urlsplit(url).path.lstrip("/"), tag, "")
        if answer.status in TRY_AGAIN or answer.status >= 500:
            raise OSError(words)
        raise PermissionError(words)


@contextmanager
def _listing() -> Iterator[None]:
    """What fsspec's own requests raise, as OSErrors."""
    try:
        yield
    except aiohttp.ClientResponseError as error:
        raise (PermissionError if error.status < 500 else OSError)(_words(error)) from None
    except (TimeoutError, aiohttp.ClientError) as error:
        raise OSError(_words(error)) from None


def _session(host: str, **settings: Any) -> aiohttp.ClientSession:
    """A session for a server that the user named; what it redirects to must be public, and no less secret."""
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_check_redirect(host))
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=IN_FLIGHT, resolver=_PublicResolver(host)),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        trace_configs=[tracing],
        **settings,
    )


def _check_redirect(host: str) -> Any:
    async def check(session: object, context: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        target = redirect.response.url.join(URL(redirect.response.headers.get("Location", "")))
        if target.scheme not in {"https", redirect.response.url.scheme}:
            raise _refusal(host, str(target))
        if target.host != host and _is_private(target.host or ""):
            raise _refusal(host, str(target))

    return check


class _PublicResolver(AbstractResolver):
    """Gives no private address of any host but `own`; a redirect may name one that resolves to it."""

    def __init__(self, own: str) -> None:
        self._own, self._resolver = own, ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if host != self._own and any(_is_private(entry["host"]) for entry in found):
            raise _refusal(self._own, host)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _is_private(host: str) -> bool:
    """Whether a numeric address is one that the public cannot reach: loopback, private, link-local (metadata)."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _refusal(host: str, target: str) -> DataError:
    return DataError(
        f"{host} redirects to {target}, a private address or a weaker scheme; "
        f"if that is what you want, name it yourself"
    )


def _tag(answer: aiohttp.ClientResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
