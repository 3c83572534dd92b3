"""The guest list on the web: its answers, many requests at once, and a real server."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

import objdb
from objdb.check import check
from tutorials.web.app import make_app
from tutorials.web.model import evening_in, faults
from tutorials.web.server import main

ROOT = Path(__file__).resolve().parents[2]
SEATS = 30


@asynccontextmanager
async def client_of(app):
    """A client that talks to the application in this process."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://web") as client,
    ):
        yield client


def talk(path, conversation):
    """Run a conversation with a new application on the file."""

    async def go():
        async with client_of(make_app(path)) as client:
            await conversation(client)

    asyncio.run(go())


@pytest.fixture
def path(tmp_path):
    """A file for guests; in order at the end."""
    path = tmp_path / "guests.fs"
    yield path
    with objdb.DB(path) as db:
        assert check(db.storage).problems == []
        with db.transaction() as connection:
            assert faults(connection) == []


def test_an_evening_from_beginning_to_end(path):
    """An evening is announced, people sign up and off, and all of it is there the next day."""

    async def first(client):
        assert (await client.get("/evenings")).json() == []
        made = await client.post("/evenings", json={"title": "Jazz", "seats": 3})
        assert (made.status_code, made.json()) == (201, {"title": "Jazz", "seats": 3, "left": 3})
        ann = await client.put("/evenings/Jazz/guests/Ann", json={"seats": 2})
        assert (ann.status_code, ann.json()["left"]) == (201, 1)
        assert (await client.put("/evenings/Jazz/guests/Ben")).json()["left"] == 0
        late = await client.put("/evenings/Jazz/guests/Cleo")
        assert (late.status_code, late.json()) == (409, {"error": "Jazz has 0 seats left"})
        assert (await client.delete("/evenings/Jazz/guests/Ben")).json()["left"] == 1

    async def next_day(client):
        evening = (await client.get("/evenings/Jazz")).json()
        assert [(guest["name"], guest["seats"]) for guest in evening["guests"]] == [("Ann", 2)]
        assert (await client.get("/evenings")).json() == [{"title": "Jazz", "seats": 3, "left": 1}]

    talk(path, first)
    talk(path, next_day)


def test_the_page(path):
    """The page shows evenings, takes names, says what came of it, and escapes what people type."""

    async def conversation(client):
        assert "no evenings yet" in (await client.get("/")).text
        await client.post("/evenings", json={"title": "<b>Jazz", "seats": 1})
        form = {"title": "<b>Jazz", "name": "<i>Ann</i>"}
        for answer in ("is on the list of", "is on the list already"):
            shown = await client.post("/sign-up", data=form, follow_redirects=True)
            assert answer in shown.text and "0 of 1 seats" in shown.text
            assert "<b>Jazz" not in shown.text and "<i>" not in shown.text
        for form, answer in (({"title": "x", "name": "a"}, "no evening"), ({}, "give a name")):
            shown = await client.post("/sign-up", data=form, follow_redirects=True)
            assert answer in shown.text

    talk(path, conversation)


@pytest.mark.parametrize(("method", "url", "sent", "status"), [
    ("GET", "/evenings/None", None, 404),
    ("PUT", "/evenings/None/guests/Ann", None, 404),
    ("DELETE", "/evenings/Jazz/guests/Ann", None, 404),
    ("POST", "/evenings", b'{"title": "Jazz", "seats": 5}', 409),
    ("POST", "/evenings", b'{"title": "Swing"}', 400),
    ("POST", "/evenings", b'{"title": "Swing", "seats": "many"}', 400),
    ("POST", "/evenings", b'{"title": "Swing", "seats": true}', 400),
    ("POST", "/evenings", b'{"title": " ", "seats": 5}', 400),
    ("POST", "/evenings", b"[1]", 400),
    ("POST", "/evenings", b"\xff", 400),
    ("PUT", "/evenings/Jazz/guests/Ann", b'{"seats": 0}', 400),
    ("PUT", "/evenings/Jazz/guests/Ann", b'{"seats": 9}', 409),
])  # fmt: skip
def test_mistakes(path, method, url, sent, status):
    """A mistake is answered with a status and a line, and changes nothing."""

    async def conversation(client):
        await client.post("/evenings", json={"title": "Jazz", "seats": 3})
        answer = await client.request(method, url, content=sent)
        assert answer.status_code == status
        assert answer.json()["error"]
        assert (await client.get("/evenings")).json() == [{"title": "Jazz", "seats": 3, "left": 3}]

    talk(path, conversation)


async def sign_up(client, number):
    """Sign somebody up; return the status. The server may be busy."""
    while True:
        status = (await client.put(f"/evenings/Jazz/guests/guest {number:03}")).status_code
        if status != 503:
            return status


def test_many_at_once(path):
    """A hundred people want thirty seats at the same time: thirty get one, the others are told."""

    async def conversation(client):
        await client.post("/evenings", json={"title": "Jazz", "seats": SEATS})
        statuses = await asyncio.gather(*(sign_up(client, number) for number in range(100)))
        assert sorted(statuses) == [201] * SEATS + [409] * (100 - SEATS)
        evening = (await client.get("/evenings/Jazz")).json()
        assert evening["left"] == 0
        assert len(evening["guests"]) == SEATS

    talk(path, conversation)


# -- a real server


@contextmanager
def served(path):
    """A server on the file: its process, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tutorials.web", "--file", str(path), "--port", "0"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    with server:
        try:
            yield server, server.stdout.readline().strip()
        finally:
            if server.poll() is None:
                server.kill()


def test_a_real_server(path):
    """Over the network, a hundred at once get thirty seats; told to end, the server ends and
    leaves a sound file."""

    async def conversation(address):
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
            await client.post("/evenings", json={"title": "Jazz", "seats": SEATS})
            reading = [client.get("/evenings/Jazz") for _ in range(20)]
            signing = [sign_up(client, number) for number in range(100)]
            *_, statuses = await asyncio.gather(*reading, asyncio.gather(*signing))
            assert statuses.count(201) == SEATS
            assert "0 of 30 seats" in (await client.get("/")).text

    with served(path) as (server, address):
        asyncio.run(conversation(address))
        os.kill(server.pid, signal.SIGTERM)
        said = server.stderr.read()
        assert server.wait(60) in (0, -signal.SIGTERM), said
    with objdb.DB(path) as db, db.transaction() as connection:
        assert evening_in(connection, "Jazz").taken == SEATS


def test_a_server_that_is_killed(path):
    """Who was told to be on the list is on it, though the server is killed in the middle."""

    async def conversation(server, address):
        told = []

        async def come(client, number):
            try:
                if await sign_up(client, number) == 201:
                    told.append(f"guest {number:03}")
            except httpx.TransportError:
                return
            if len(told) == 20 and server.poll() is None:
                server.kill()

        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            await client.post("/evenings", json={"title": "Jazz", "seats": 1000})
            await asyncio.gather(*(come(client, number) for number in range(100)))
        return told

    with served(path) as (server, address):
        told = asyncio.run(conversation(server, address))
    assert len(told) >= 20
    with objdb.DB(path) as db, db.transaction() as connection:
        assert set(told) <= set(evening_in(connection, "Jazz").guests)


def test_the_command():
    """The command has help, and tells in a line that a port is taken."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0 and "--port" in result.output
    result = CliRunner().invoke(main, ["--host", "256.0.0.1", "--port", "0"])
    assert result.exit_code == 1 and result.output.count("\n") == 1
