"""A guest list on the web, on objdb and Starlette. The text that goes with it is README.md.

In reading order:

    model.py    evenings, seats and guests: why no seat is given away twice
    app.py      the application: each request is a transaction
    pages.py    the page that a browser shows
    server.py   the command that serves it
"""
