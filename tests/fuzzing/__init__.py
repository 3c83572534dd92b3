"""A fuzzer over the messages, and over both ends of a connection: see `__main__`."""
