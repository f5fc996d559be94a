"""Where a web server may lead us to: nowhere that its user did not mean."""

from __future__ import annotations

import asyncio

import pytest

from data_pipelines.base import DataError
from data_pipelines.storage import Storage, read_bytes
from data_pipelines.storage.web import _is_private, _PublicResolver
from tests.stores import Answer, send, web_server

HASTY = Storage(deadline_s=2)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "there").write_bytes(b"content")
    with web_server(tmp_path) as server:
        yield server


def redirect(server, target):
    def fault(request, answer):
        send(request, Answer(302, {"Location": target, "Content-Length": "0"}))

    server.fault = lambda request: fault if request.path == "/here" else None


def test_a_redirect_within_the_server_is_followed(server):
    redirect(server, "/there")
    assert read_bytes(f"{server.url}/here", HASTY) == b"content"


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://[fd00:ec2::254]/latest/",
        "http://[::ffff:169.254.169.254]/",
        "http://10.1.2.3/x",
        "http://0.0.0.0/x",
        "http://localhost:{port}/there",
    ],
)
def test_a_redirect_to_a_private_address_is_refused(server, target):
    redirect(server, target.format(port=server.url.rpartition(":")[2]))
    with pytest.raises(DataError, match=r"redirects to .* a private address or a weaker scheme"):
        read_bytes(f"{server.url}/here", HASTY)
    assert {request.path for request in server.requests} == {"/here"}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "pipe:touch%20marker", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_refused(server, target):
    redirect(server, target)
    with pytest.raises(DataError, match="a private address or a weaker scheme"):
        read_bytes(f"{server.url}/here", HASTY)


def test_a_name_that_resolves_to_a_private_address_is_refused_unless_the_user_named_it():
    async def resolve(own):
        resolver = _PublicResolver(own)
        try:
            return await resolver.resolve("localhost", 80)
        finally:
            await resolver.close()

    with pytest.raises(DataError, match=r"data.example.org redirects to localhost"):
        asyncio.run(resolve("data.example.org"))
    assert asyncio.run(resolve("localhost"))


def test_public_addresses_are_public():
    assert not _is_private("8.8.8.8") and not _is_private("2606:4700:4700::1111")
