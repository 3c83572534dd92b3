"""The simulation of `objdb_zeo`: the server and its clients, in one thread, from one seed."""
