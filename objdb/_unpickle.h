/* See _unpickle.c.

   Returns the state pickled in bytes, from behind the opcode that gives the protocol, which is 3
   or lower: a new reference; or NULL, with the error of a function that was called, or without one
   when pickle is to be asked.
   memo, if not NULL, is what the memo begins with. held: dict from b"module\nname\n" to class or
   function; a function that finds what is not in it; persistent_load. */

PyObject *plain_unpickle(const char *bytes, Py_ssize_t size, PyObject *memo, PyObject **held);
