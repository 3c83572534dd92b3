"""The application: each request is a transaction.

    GET    /                               the page
    POST   /sign-up                        its form
    GET    /evenings                       all evenings
    POST   /evenings                       {"title": …, "seats": …}
    GET    /evenings/TITLE                 one evening, with its guests
    PUT    /evenings/TITLE/guests/NAME     {"seats": …}, or nothing
    DELETE /evenings/TITLE/guests/NAME

What changes something goes through `db.arun`: after a conflict it runs again. What only reads is an
`async with db.transaction()`. Neither keeps the event loop waiting, so one thread serves everybody.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

import objdb

from .model import (
    Evening,
    GuestListError,
    Refused,
    Unknown,
    add_evening,
    evening_in,
    evenings_in,
)
from .pages import page

TRIES = 50
MOST_SEATS = 100_000


class BadRequest(Exception):
    """A request that says nothing sensible; the message says why."""


def make_app(path: str | Path | None) -> Starlette:
    """Return the application on the file *path* (None: in memory), which is open for as long as
    the application runs."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with objdb.DB(path) as db:
            await db.arun(evenings_in)
            app.state.db = db
            yield

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/", show_page),
            Route("/sign-up", sign_up_by_form, methods=["POST"]),
            Route("/evenings", list_evenings),
            Route("/evenings", make_evening, methods=["POST"]),
            Route("/evenings/{title}", show_evening),
            Route("/evenings/{title}/guests/{name}", sign_up, methods=["PUT"]),
            Route("/evenings/{title}/guests/{name}", sign_off, methods=["DELETE"]),
        ],
        exception_handlers={
            BadRequest: answer(400),
            Unknown: answer(404),
            Refused: answer(409),
            objdb.ConflictError: answer(503),
            objdb.PoolTimeoutError: answer(503),
        },
    )


def answer(status: int) -> Any:
    """Return a handler that tells an error in a line."""

    def handle(request: Request, error: Exception) -> Response:
        text = str(error) if status < 500 else "busy; try again"
        return JSONResponse({"error": text}, status)

    return handle


# -- what reads


async def list_evenings(request: Request) -> Response:
    """All evenings, with the seats that are left."""
    async with request.app.state.db.transaction() as connection:
        evenings = evenings_in(connection)
        await connection.prefetch(evenings, depth=1)
        return JSONResponse([evening.as_dict() for evening in evenings.values()])


async def show_evening(request: Request) -> Response:
    """One evening, and who comes."""
    async with request.app.state.db.transaction() as connection:
        evening = evening_in(connection, request.path_params["title"])
        await connection.prefetch(evening.guests, depth=1)
        guests = [
            {"name": guest.name, "seats": guest.seats, "since": guest.since.isoformat()}
            for guest in evening.guests.values()
        ]
        return JSONResponse({**evening.as_dict(), "guests": guests})


async def show_page(request: Request) -> Response:
    """The page for browsers."""
    async with request.app.state.db.transaction() as connection:
        evenings = evenings_in(connection)
        await connection.prefetch(evenings, depth=1)
        said = request.query_params.get("said", "")
        return HTMLResponse(page(list(evenings.values()), said))


# -- what changes


async def make_evening(request: Request) -> Response:
    """Add an evening."""
    wanted = await sent_object(request)
    title, seats = text_in(wanted, "title"), seats_in(wanted, default=None)

    def make(connection: objdb.Connection) -> dict[str, Any]:
        return add_evening(connection, title, seats).as_dict()

    return JSONResponse(await request.app.state.db.arun(make, TRIES, f"evening {title}"), 201)


async def sign_up(request: Request) -> Response:
    """Put somebody on the list."""
    title, name = request.path_params["title"], request.path_params["name"]
    seats = seats_in(await sent_object(request), default=1)

    def put(connection: objdb.Connection) -> dict[str, Any]:
        evening = evening_in(connection, title)
        evening.sign_up(name, seats)
        return evening.as_dict()

    return JSONResponse(await request.app.state.db.arun(put, TRIES, f"{name} signs up"), 201)


async def sign_off(request: Request) -> Response:
    """Take somebody off the list."""
    title, name = request.path_params["title"], request.path_params["name"]

    def take(connection: objdb.Connection) -> dict[str, Any]:
        evening: Evening = evening_in(connection, title)
        evening.sign_off(name)
        return evening.as_dict()

    return JSONResponse(await request.app.state.db.arun(take, TRIES, f"{name} signs off"))


async def sign_up_by_form(request: Request) -> Response:
    """Put somebody on the list, and show the page again with what came of it."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    title, name = form.get("title", [""])[0], form.get("name", [""])[0].strip()

    def put(connection: objdb.Connection) -> str:
        if not name:
            raise Refused("please give a name")
        evening_in(connection, title).sign_up(name)
        return f"{name} is on the list of {title}"

    try:
        said = await request.app.state.db.arun(put, TRIES, f"{name} signs up")
    except GuestListError as error:
        said = str(error)
    return RedirectResponse(request.url_for("show_page").include_query_params(said=said), 303)


# -- what was sent


async def sent_object(request: Request) -> dict[str, Any]:
    """Return the JSON object that was sent; an empty one if nothing was."""
    body = await request.body()
    try:
        sent = json.loads(body or b"{}")
    except ValueError:
        raise BadRequest("this is no JSON") from None
    if not isinstance(sent, dict):
        raise BadRequest("an object is wanted")
    return sent


def text_in(sent: dict[str, Any], key: str) -> str:
    """Return a text that must be there."""
    text = sent.get(key)
    if not isinstance(text, str) or not text.strip() or "/" in text:
        raise BadRequest(f"{key} must be a text without a slash")
    return text.strip()


def seats_in(sent: dict[str, Any], default: int | None) -> int:
    """Return a number of seats."""
    seats = sent.get("seats", default)
    if type(seats) is not int or not 1 <= seats <= MOST_SEATS:
        raise BadRequest("seats must be a number, 1 or more")
    return seats
