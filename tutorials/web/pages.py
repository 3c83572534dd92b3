"""The page that a browser shows: evenings, what is left, and a form for each."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from .model import Evening

_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Guest list</title>
<style>body {{ font: 1.1em sans-serif; max-width: 40em; margin: 2em auto }}</style></head>
<body><h1>Guest list</h1>{said}{evenings}</body></html>
"""
_EVENING = """
<h2>{title}</h2><p>{left} of {seats} seats are left.</p>
<form method="post" action="/sign-up"><input type="hidden" name="title" value="{title}">
<input name="name" placeholder="Your name" required> <button>Sign up</button></form>
"""


def page(evenings: Iterable[Evening], said: str) -> str:
    """Return the page; *said* stands at the top."""
    return _FRAME.format(
        said=f"<p><b>{escape(said)}</b></p>" if said else "",
        evenings="".join(
            _EVENING.format(
                title=escape(evening.title), seats=evening.seats,
                left=evening.seats - evening.taken,
            )
            for evening in evenings
        ) or "<p>There are no evenings yet.</p>",
    )
