"""The server's side of ZEO's protocol: no sockets, no threads, no clock.

A `Session` takes the bytes that arrive on a connection, and gives those to send. What takes its
time, a step of a generator asks the `Driver` for: see `driver`.
"""
