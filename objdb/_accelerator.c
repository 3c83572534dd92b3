/* The load path, and the pickling of commits, in C, for where there is a compiler.

   Each thing here has the name and the behaviour of a Python class or function, which stays the
   reference, serves where this module could not be built, and is tested in the same way:

       PageTable, RecordReader         objdb/storage/file/lookup.py
       plain_revisions, …_positions    objdb/storage/file/walking.py
       plain_reader, reference_loader  objdb/records/unpickling.py
       serializer, reference_maker     objdb/records/pickling.py
       LoadPath                        objdb/connection/loadpath.py
       read_since                      objdb/connection/isolation.py

   What is unusual is left to Python: these functions then return to, or call, their caller's
   long way. All of it runs under the interpreter's lock, which the functions called from here
   may let go of for a while: no field is relied on across such a call. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "persistent/cPersistence.h"
#include "_unpickle.h"

#define RECORD_HEADER 42  /* oid, tid, previous, transaction: 8 bytes each; version 2, size 8 */
#define GUESS_BYTES 512
#define WINDOW_BYTES (16 * 1024)
#define PROTOCOL 3        /* of pickles: what is written, and the highest plain_unpickle reads */

static const char no_tid[8];
static PyObject *empty_tuple, *protocol, *pickle_dumps;
static PyObject *name_getstate, *name_is_gone, *name_load_failed, *name_note_size,
    *name_refuse_thread, *name_setstate;
static PyObject *p_jar, *p_oid;  /* the setters of Persistent, which ask no class */

static uint64_t
number_at(const char *place)
{
    const unsigned char *p = (const unsigned char *)place;
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | p[i];
    return number;
}

static void
put_number(char *place, uint64_t number)
{
    for (int i = 7; i >= 0; i--, number >>= 8)
        place[i] = (char)(number & 0xFF);
}

static int
is_oid(PyObject *object)
{
    return PyBytes_CheckExact(object) && PyBytes_GET_SIZE(object) == 8;
}

/* Return a tuple of two or three new references, any of which may be NULL after an error. */
static PyObject *
tuple_of(PyObject *first, PyObject *second, PyObject *third)
{
    PyObject *items[3] = {first, second, third};
    PyObject *tuple = PyErr_Occurred() ? NULL : PyTuple_New(third == NULL ? 2 : 3);
    for (int i = 0; i < 3; i++)
        if (tuple != NULL && items[i] != NULL)
            PyTuple_SET_ITEM(tuple, i, items[i]);
        else
            Py_XDECREF(items[i]);
    return tuple;
}

#define BASE(name) \
    PyVarObject_HEAD_INIT(NULL, 0) .tp_name = "objdb._accelerator." #name, \
    .tp_basicsize = sizeof(name)

/* ---- PageTable: where each object's current record is ---- */

typedef struct {
    PyObject_HEAD
    PyObject *pages;    /* dict: first 7 bytes of oids -> where in the map their page is */
    PyObject *overlay;  /* dict: oid -> (position, tid) */
    PyObject *map;      /* a buffer */
} PageTable;

static PyObject *
PageTable_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PageTable *self = (PageTable *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->pages = PyDict_New();
    self->overlay = PyDict_New();
    self->map = PyBytes_FromStringAndSize("", 0);
    if (self->pages == NULL || self->overlay == NULL || self->map == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void
PageTable_dealloc(PageTable *self)
{
    Py_XDECREF(self->pages);
    Py_XDECREF(self->overlay);
    Py_XDECREF(self->map);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Find where the entry of an oid is in the map: its offset; -1 if there is none, -2 with an error
   set. */
static Py_ssize_t
PageTable_find(PageTable *self, PyObject *oid)
{
    if (!is_oid(oid))
        return -1;
    PyObject *prefix = PyBytes_FromStringAndSize(PyBytes_AS_STRING(oid), 7);
    if (prefix == NULL)
        return -2;
    PyObject *page = PyDict_GetItemWithError(self->pages, prefix);
    Py_DECREF(prefix);
    Py_ssize_t at = page == NULL ? -1 : PyLong_AsSsize_t(page);
    if (at < 0)
        return PyErr_Occurred() ? -2 : -1;
    return at + ((Py_ssize_t)(unsigned char)PyBytes_AS_STRING(oid)[7] << 4);
}

static PyObject *
PageTable_get(PageTable *self, PyObject *oid)
{
    if (PyDict_GET_SIZE(self->overlay)) {
        PyObject *found = PyDict_GetItemWithError(self->overlay, oid);
        if (found != NULL || PyErr_Occurred())
            return Py_XNewRef(found);
    }
    Py_ssize_t at = PageTable_find(self, oid);
    if (at == -2)
        return NULL;
    if (at == -1)
        Py_RETURN_NONE;
    Py_buffer view;
    if (PyObject_GetBuffer(self->map, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *entry;
    const char *place = (const char *)view.buf + at;
    if (at + 16 > view.len || number_at(place) == 0)  /* closed meanwhile; or no such object */
        entry = Py_NewRef(Py_None);
    else
        entry = tuple_of(PyLong_FromUnsignedLongLong(number_at(place)),
                         PyBytes_FromStringAndSize(place + 8, 8), NULL);
    PyBuffer_Release(&view);
    return entry;
}

static PyObject *
PageTable_changed(PageTable *self, PyObject *serials)
{
    if (!PyDict_CheckExact(serials))
        return PyErr_Format(PyExc_TypeError, "changed() takes a dict of oid and tid");
    PyObject *oid, *serial, *found = PyList_New(0);
    Py_ssize_t position = 0;
    Py_buffer view;
    if (found == NULL || PyObject_GetBuffer(self->map, &view, PyBUF_SIMPLE) < 0) {
        Py_XDECREF(found);
        return NULL;
    }
    while (found != NULL && PyDict_Next(serials, &position, &oid, &serial)) {
        Py_ssize_t at = PageTable_find(self, oid);
        const char *place = (const char *)view.buf + at, *tid = no_tid;
        if (at >= 0 && at + 16 <= view.len && number_at(place))
            tid = place + 8;
        if (at != -2 && is_oid(serial) && memcmp(tid, PyBytes_AS_STRING(serial), 8) == 0)
            continue;
        PyObject *item = at == -2 ? NULL
            : tuple_of(Py_NewRef(oid), PyBytes_FromStringAndSize(tid, 8), NULL);
        if (item == NULL || PyList_Append(found, item) < 0)
            Py_CLEAR(found);
        Py_XDECREF(item);
    }
    PyBuffer_Release(&view);
    return found;
}

static PyObject *
PageTable_set_many(PageTable *self, PyObject *args)
{
    PyObject *positions, *tid, *oid, *position;
    Py_ssize_t i = 0;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "O!O", &PyDict_Type, &positions, &tid)
            || PyObject_GetBuffer(self->map, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    while (!PyErr_Occurred() && PyDict_Next(positions, &i, &oid, &position)) {
        Py_ssize_t at = PageTable_find(self, oid);
        uint64_t number = PyLong_AsUnsignedLongLong(position);
        if (at == -2 || (number == (uint64_t)-1 && PyErr_Occurred()))
            break;
        if (at < 0 || at + 16 > view.len || !is_oid(tid)) {
            PyErr_SetObject(PyExc_KeyError, oid);
            break;
        }
        char entry[16];
        put_number(entry, number);
        memcpy(entry + 8, PyBytes_AS_STRING(tid), 8);
        memcpy((char *)view.buf + at, entry, 16);  /* in one piece */
    }
    PyBuffer_Release(&view);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef PageTable_methods[] = {
    {"set_many", (PyCFunction)PageTable_set_many, METH_VARARGS, NULL},
    {"get", (PyCFunction)PageTable_get, METH_O, NULL},
    {"changed", (PyCFunction)PageTable_changed, METH_O, NULL},
    {NULL},
};

static PyMemberDef PageTable_members[] = {
    {"pages", T_OBJECT, offsetof(PageTable, pages), READONLY},
    {"overlay", T_OBJECT, offsetof(PageTable, overlay), READONLY},
    {"map", T_OBJECT_EX, offsetof(PageTable, map), 0},
    {NULL},
};

static PyTypeObject PageTable_type = {
    BASE(PageTable),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PageTable_new,
    .tp_dealloc = (destructor)PageTable_dealloc,
    .tp_methods = PageTable_methods,
    .tp_members = PageTable_members,
};

/* ---- plain_revisions, plain_positions: the records of a transaction ---- */

typedef struct {
    PyTypeObject *cls;
    PyObject *block, *tid;
    Py_ssize_t start, at, stop;
    unsigned long long transaction;
} Run;

static int
Run_parse(Run *run, PyObject *args)
{
    run->cls = &PyTuple_Type;
    if (!PyArg_ParseTuple(args, "O!nnnO!K|O!", &PyBytes_Type, &run->block, &run->start, &run->at,
                          &run->stop, &PyBytes_Type, &run->tid, &run->transaction, &PyType_Type,
                          &run->cls))
        return -1;
    if (!is_oid(run->tid) || !PyType_IsSubtype(run->cls, &PyTuple_Type) || run->start < 0
            || run->at < run->start || run->stop < run->start) {
        PyErr_SetString(PyExc_TypeError, "no tid, no named tuple, or no place in the block");
        return -1;
    }
    run->at -= run->start;
    run->stop -= run->start;
    if (run->stop > PyBytes_GET_SIZE(run->block))
        run->stop = PyBytes_GET_SIZE(run->block);
    return 0;
}

/* Return the header of the record that is next, and its size; NULL if it is not plain. */
static const char *
Run_next(Run *run, Py_ssize_t *size)
{
    const char *header = PyBytes_AS_STRING(run->block) + run->at;
    if (run->at > run->stop - RECORD_HEADER || memcmp(header + 8, PyBytes_AS_STRING(run->tid), 8)
            || number_at(header + 16) >= run->transaction
            || number_at(header + 24) != run->transaction || header[32] || header[33])
        return NULL;
    uint64_t data_size = number_at(header + 34);
    *size = (Py_ssize_t)data_size;
    return data_size && data_size <= (uint64_t)(run->stop - run->at - RECORD_HEADER) ? header : NULL;
}

static PyObject *
plain_positions(PyObject *module, PyObject *args)
{
    Run run;
    Py_ssize_t size;
    const char *header;
    if (Run_parse(&run, args) < 0)
        return NULL;
    PyObject *found = PyDict_New();
    while (found != NULL && (header = Run_next(&run, &size)) != NULL) {
        PyObject *oid = PyBytes_FromStringAndSize(header, 8);
        PyObject *position = PyLong_FromSsize_t(run.start + run.at);
        if (oid == NULL || position == NULL || PyDict_SetItem(found, oid, position) < 0)
            Py_CLEAR(found);
        Py_XDECREF(oid);
        Py_XDECREF(position);
        run.at += RECORD_HEADER + size;
    }
    return found == NULL ? NULL : Py_BuildValue("Nn", found, run.start + run.at);
}

static PyObject *
plain_revisions(PyObject *module, PyObject *args)
{
    Run run;
    Py_ssize_t size;
    const char *header;
    if (Run_parse(&run, args) < 0)
        return NULL;
    PyObject *found = PyList_New(0), *no_version = PyUnicode_New(0, 0), *none = Py_None;
    while (found != NULL && no_version != NULL && (header = Run_next(&run, &size)) != NULL) {
        PyObject *items[] = {
            PyBytes_FromStringAndSize(header, 8), Py_NewRef(run.tid),
            PyBytes_FromStringAndSize(header + RECORD_HEADER, size),
            Py_NewRef(no_version), Py_NewRef(none)};
        PyObject *record = PyErr_Occurred() ? NULL : run.cls->tp_alloc(run.cls, 5);
        for (int i = 0; i < 5; i++)
            if (record != NULL)
                PyTuple_SET_ITEM(record, i, items[i]);
            else
                Py_XDECREF(items[i]);
        if (record == NULL || PyList_Append(found, record) < 0)
            Py_CLEAR(found);
        Py_XDECREF(record);
        run.at += RECORD_HEADER + size;
    }
    Py_XDECREF(no_version);
    return found == NULL ? NULL : Py_BuildValue("Nn", found, run.start + run.at);
}

/* ---- RecordReader: plain current records, read with one read or none ---- */

#define IN_VERSION (UINT64_C(3) << 62)
#define VERSION_HEADER 16

typedef struct {
    PyObject_HEAD
    PyObject *find;     /* oid -> (position, tid), or None */
    PyObject *read_at;  /* (size, position) -> bytes */
    Py_ssize_t end;     /* of what is published */
    Py_ssize_t start;   /* of the block */
    PyObject *block;    /* the bytes read last */
} RecordReader;

static PyObject *
RecordReader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *find, *read_at;
    if (!PyArg_ParseTuple(args, "OO", &find, &read_at))
        return NULL;
    RecordReader *self = (RecordReader *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->find = Py_NewRef(find);
    self->read_at = Py_NewRef(read_at);
    self->block = PyBytes_FromStringAndSize("", 0);
    if (self->block == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void
RecordReader_dealloc(RecordReader *self)
{
    Py_XDECREF(self->find);
    Py_XDECREF(self->read_at);
    Py_XDECREF(self->block);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Return the bytes at a position: many where reading goes on forward, few elsewhere. */
static PyObject *
RecordReader_read(RecordReader *self, Py_ssize_t position)
{
    Py_ssize_t ahead = position - self->start - PyBytes_GET_SIZE(self->block);
    Py_ssize_t size = -GUESS_BYTES <= ahead && ahead <= WINDOW_BYTES ? WINDOW_BYTES : GUESS_BYTES;
    if (size > self->end - position)
        size = self->end - position;
    PyObject *numbers[2] = {PyLong_FromSsize_t(size), PyLong_FromSsize_t(position)};
    PyObject *block = NULL, *read_at = Py_NewRef(self->read_at);  /* closing replaces it */
    if (numbers[0] != NULL && numbers[1] != NULL)
        block = PyObject_Vectorcall(read_at, numbers, 2, NULL);
    Py_DECREF(read_at);
    Py_XDECREF(numbers[0]);
    Py_XDECREF(numbers[1]);
    if (block != NULL && !PyBytes_CheckExact(block)) {
        PyErr_SetString(PyExc_TypeError, "read_at gives bytes");
        Py_CLEAR(block);
    }
    return block;
}

static PyObject *
RecordReader_load(RecordReader *self, PyObject *const *args, Py_ssize_t count)
{
    if ((count != 2 && (count != 3 || !PyUnicode_CheckExact(args[2])))
            || !is_oid(args[0]) || !is_oid(args[1]))
        Py_RETURN_NONE;
    Py_ssize_t name_size = 0;
    const char *name = count == 3 ? PyUnicode_AsUTF8AndSize(args[2], &name_size) : "";
    if (name == NULL)
        return NULL;
    PyObject *entry = PyObject_CallOneArg(self->find, args[0]);
    if (entry == NULL || entry == Py_None)
        return entry;
    PyObject *tid = PyTuple_GET_ITEM(entry, 1), *result = NULL, *block = NULL;
    uint64_t place = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(entry, 0));
    if (place == (uint64_t)-1)
        PyErr_Clear();  /* larger than a position can be */
    if (place >= IN_VERSION && name_size)
        place -= IN_VERSION;
    else
        name_size = 0;
    Py_ssize_t position = (Py_ssize_t)place;
    if (position < 0 || position >= self->end || memcmp(PyBytes_AS_STRING(tid), PyBytes_AS_STRING(args[1]), 8) >= 0)
        goto unusual;
    Py_ssize_t at = position - self->start;
    if (at >= 0 && at + RECORD_HEADER <= PyBytes_GET_SIZE(self->block))
        block = Py_NewRef(self->block);
    else {
        at = 0;
        block = RecordReader_read(self, position);
        if (block == NULL)
            goto done;
        if (PyBytes_GET_SIZE(block) < RECORD_HEADER)
            goto unusual;
        self->start = position;
        Py_SETREF(self->block, Py_NewRef(block));
    }
    const char *header = PyBytes_AS_STRING(block) + at;
    Py_ssize_t more = name_size ? VERSION_HEADER + name_size : 0;
    Py_ssize_t there = PyBytes_GET_SIZE(block) - at - RECORD_HEADER - more;
    uint64_t size = number_at(header + 34);
    if (memcmp(header, PyBytes_AS_STRING(args[0]), 8)
            || memcmp(header + 8, PyBytes_AS_STRING(tid), 8)
            || (((unsigned char)header[32] << 8) | (unsigned char)header[33]) != name_size
            || !size || there < 0 || size > (uint64_t)there)
        goto unusual;
    header += RECORD_HEADER + more;
    if (memcmp(header - name_size, name, name_size))
        goto unusual;
    result = tuple_of(PyBytes_FromStringAndSize(header, (Py_ssize_t)size),
                      Py_NewRef(tid), Py_NewRef(Py_None));
    goto done;
unusual:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(block);
    Py_DECREF(entry);
    return result;
}

static PyMethodDef RecordReader_methods[] = {
    {"load", (PyCFunction)(void (*)(void))RecordReader_load, METH_FASTCALL, NULL},
    {NULL},
};

static PyMemberDef RecordReader_members[] = {
    {"read_at", T_OBJECT_EX, offsetof(RecordReader, read_at), 0},
    {"end", T_PYSSIZET, offsetof(RecordReader, end), 0},
    {NULL},
};

static PyTypeObject RecordReader_type = {
    BASE(RecordReader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = RecordReader_new,
    .tp_dealloc = (destructor)RecordReader_dealloc,
    .tp_methods = RecordReader_methods,
    .tp_members = RecordReader_members,
};

/* ---- unpickling ---- */

/* Replace the error that is set by what explainer makes of it and the record. */
static void
explain(PyObject *explainer, PyObject *record)
{
    PyObject *type, *error, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *arguments[2] = {error, record};
    PyObject *better = PyObject_Vectorcall(explainer, arguments, 2, NULL);
    if (better != NULL && better != error) {
        PyException_SetCause(better, Py_NewRef(error));
        PyErr_SetObject((PyObject *)Py_TYPE(better), better);
    }
    if (better == error) {
        PyErr_Restore(type, error, traceback);
        type = error = traceback = NULL;
    }
    Py_XDECREF(better);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
}

/* state(cls, record); held: (dict: class -> (class pickle, what it leaves in the memo or None),
   read, what plain_unpickle holds, explainer). */
static PyObject *
state(PyObject *held, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "state() takes a class and a record");
        return NULL;
    }
    PyObject *known = PyDict_GetItemWithError(PyTuple_GET_ITEM(held, 0), args[0]);
    if (known == NULL && PyErr_Occurred())
        return NULL;
    const char *bytes = PyBytes_AS_STRING(args[1]);
    Py_ssize_t length = known ? PyBytes_GET_SIZE(PyTuple_GET_ITEM(known, 0)) : 0;
    Py_ssize_t size = PyBytes_GET_SIZE(args[1]) - length;
    if (known != NULL && size > 2
            && memcmp(bytes, PyBytes_AS_STRING(PyTuple_GET_ITEM(known, 0)), length) == 0
            && bytes[length] == '\x80' && (unsigned char)bytes[length + 1] <= PROTOCOL) {
        PyObject *memo = PyTuple_GET_ITEM(known, 1);
        if (Py_EnterRecursiveCall(" while unpickling a state"))
            return NULL;
        PyObject *state = plain_unpickle(bytes + length + 2, size - 2,
                                         memo == Py_None ? NULL : memo,
                                         &PyTuple_GET_ITEM(held, 2));
        Py_LeaveRecursiveCall();
        if (state != NULL)
            return state;
        if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_Clear();  /* a class in a class may be missing: the long way stands in for it */
        else if (PyErr_Occurred()) {
            explain(PyTuple_GET_ITEM(held, 5), args[1]);
            return NULL;
        }
    }
    return PyObject_Vectorcall(PyTuple_GET_ITEM(held, 1), args, 2, NULL);
}

static PyMethodDef state_method = {"state", (PyCFunction)(void (*)(void))state, METH_FASTCALL,
                                   NULL};

static PyObject *
plain_reader(PyObject *module, PyObject *args)
{
    PyObject *known, *read, *globals, *find_global, *persistent_load, *explainer;
    if (!PyArg_ParseTuple(args, "O!OO!OOO", &PyDict_Type, &known, &read, &PyDict_Type, &globals,
                          &find_global, &persistent_load, &explainer))
        return NULL;
    return PyCFunction_New(&state_method, args);
}

/* persistent_load(reference); held: (cache.get, cache.new_ghost, set of plain classes,
   load_unusual). */
static PyObject *
persistent_load(PyObject *held, PyObject *reference)
{
    if (!PyTuple_CheckExact(reference) || PyTuple_GET_SIZE(reference) != 2)
        return PyObject_CallOneArg(PyTuple_GET_ITEM(held, 3), reference);
    PyObject *oid = PyTuple_GET_ITEM(reference, 0), *cls = PyTuple_GET_ITEM(reference, 1);
    PyObject *obj = PyObject_CallOneArg(PyTuple_GET_ITEM(held, 0), oid);
    if (obj != Py_None)  /* found; or an error */
        return obj;
    Py_DECREF(obj);
    int is_plain = PyType_Check(cls) ? PySet_Contains(PyTuple_GET_ITEM(held, 2), cls) : 0;
    if (is_plain < 0)
        return NULL;
    if (!is_plain || !is_oid(oid))
        return PyObject_CallOneArg(PyTuple_GET_ITEM(held, 3), reference);
    obj = ((PyTypeObject *)cls)->tp_new((PyTypeObject *)cls, empty_tuple, NULL);
    if (obj == NULL)
        return NULL;
    PyObject *arguments[2] = {oid, obj};
    PyObject *done = PyObject_Vectorcall(PyTuple_GET_ITEM(held, 1), arguments, 2, NULL);
    if (done == NULL)
        Py_CLEAR(obj);
    Py_XDECREF(done);
    return obj;
}

static PyMethodDef persistent_load_method = {"persistent_load", persistent_load, METH_O, NULL};

static PyObject *
reference_loader(PyObject *module, PyObject *args)
{
    PyObject *in_cache, *new_ghost, *plain, *load_unusual;
    if (!PyArg_ParseTuple(args, "OOO!O", &in_cache, &new_ghost, &PySet_Type, &plain,
                          &load_unusual))
        return NULL;
    return PyCFunction_New(&persistent_load_method, args);
}

/* ---- pickling ---- */

/* Whether values of this type are never persistent themselves; with are_atoms, whether they also
   contain nothing that is. */
static int
is_plain(PyTypeObject *type, int are_atoms)
{
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBytes_Type
        || type == &PyFloat_Type || type == &PyBool_Type || type == Py_TYPE(Py_None)
        || type == &PyComplex_Type
        || (!are_atoms && (type == &PyTuple_Type || type == &PyDict_Type || type == &PyList_Type
            || type == &PyType_Type || type == &PySet_Type || type == &PyFrozenSet_Type
            || type == &PyByteArray_Type));
}

static int
has_only_atoms(PyObject *dict)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value))
        if (!is_plain(Py_TYPE(key), 1) || !is_plain(Py_TYPE(value), 1))
            return 0;
    return 1;
}

/* serialize(obj); held: (dict: class -> prefix, dump, long_way). */
static PyObject *
serialize(PyObject *held, PyObject *obj)
{
    PyObject *prefix = PyDict_GetItemWithError(PyTuple_GET_ITEM(held, 0), (PyObject *)Py_TYPE(obj));
    if (prefix == NULL && PyErr_Occurred())
        return NULL;
    if (prefix == NULL || !PyBytes_CheckExact(prefix))
        return PyObject_CallOneArg(PyTuple_GET_ITEM(held, 2), obj);
    Py_INCREF(prefix);
    PyObject *pickled = NULL, *state = PyObject_CallMethodNoArgs(obj, name_getstate);
    if (state != NULL && PyDict_CheckExact(state) && has_only_atoms(state)) {
        PyObject *arguments[2] = {state, protocol};
        pickled = PyObject_Vectorcall(pickle_dumps, arguments, 2, NULL);
    }
    else if (state != NULL) {
        PyObject *arguments[2] = {obj, state};
        pickled = PyObject_Vectorcall(PyTuple_GET_ITEM(held, 1), arguments, 2, NULL);
    }
    Py_XDECREF(state);
    if (pickled != NULL)
        PyBytes_ConcatAndDel(&prefix, pickled);
    else
        Py_CLEAR(prefix);
    return prefix;
}

static PyMethodDef serialize_method = {"serialize", serialize, METH_O, NULL};

static PyObject *
serializer(PyObject *module, PyObject *args)
{
    PyObject *prefixes, *dump, *long_way;
    if (!PyArg_ParseTuple(args, "O!OO", &PyDict_Type, &prefixes, &dump, &long_way))
        return NULL;
    return PyCFunction_New(&serialize_method, args);
}

/* persistent_id(obj); held: (jar, new_oid, found, dict: class -> prefix, make_unusual). */
static PyObject *
persistent_id(PyObject *held, PyObject *obj)
{
    PyObject *cls = (PyObject *)Py_TYPE(obj), *jar = PyTuple_GET_ITEM(held, 0);
    if (is_plain(Py_TYPE(obj), 0))
        Py_RETURN_NONE;
    int is_named = PyDict_Contains(PyTuple_GET_ITEM(held, 3), cls);
    if (is_named < 0)
        return NULL;
    cPersistentObject *persistent = (cPersistentObject *)obj;
    if (!is_named || !PER_TypeCheck(obj) || (persistent->jar != NULL && persistent->jar != jar)
            || (persistent->jar == NULL) != (persistent->oid == NULL))
        return PyObject_CallOneArg(PyTuple_GET_ITEM(held, 4), obj);
    PyObject *oid = Py_XNewRef(persistent->oid);
    if (oid == NULL) {
        oid = PyObject_CallNoArgs(PyTuple_GET_ITEM(held, 1));
        if (oid == NULL || Py_TYPE(p_jar)->tp_descr_set(p_jar, obj, jar) < 0
                || Py_TYPE(p_oid)->tp_descr_set(p_oid, obj, oid) < 0
                || PyList_Append(PyTuple_GET_ITEM(held, 2), obj) < 0) {
            Py_XDECREF(oid);
            return NULL;
        }
    }
    return tuple_of(oid, Py_NewRef(cls), NULL);
}

static PyMethodDef persistent_id_method = {"persistent_id", persistent_id, METH_O, NULL};

static PyObject *
reference_maker(PyObject *module, PyObject *args)
{
    PyObject *jar, *new_oid, *found, *prefixes, *make_unusual;
    if (!PyArg_ParseTuple(args, "OOO!O!O", &jar, &new_oid, &PyList_Type, &found, &PyDict_Type,
                          &prefixes, &make_unusual))
        return NULL;
    return PyCFunction_New(&persistent_id_method, args);
}

/* ---- LoadPath: how a connection loads an object ---- */

typedef struct {
    PyObject_HEAD
    PyObject *load_before;  /* (oid, tid) -> (record, its tid, tid of the next) */
    PyObject *read_state;   /* (class, record) -> state */
    PyObject *before;       /* the tid that the snapshot ends before */
    unsigned long user;     /* the thread that is loading just now, or 0 */
    PyObject *loaded;       /* bytearray: oids and tids of what was loaded, in turns; or None */
    Py_ssize_t load_count;
    char counts_bytes;
} LoadPath;

static int
LoadPath_traverse(LoadPath *self, visitproc visit, void *arg)
{
    Py_VISIT(self->load_before);
    Py_VISIT(self->read_state);
    Py_VISIT(self->loaded);
    return 0;
}

static int
LoadPath_clear(LoadPath *self)
{
    Py_CLEAR(self->load_before);
    Py_CLEAR(self->read_state);
    Py_CLEAR(self->loaded);
    return 0;
}

static void
LoadPath_dealloc(LoadPath *self)
{
    PyObject_GC_UnTrack(self);
    LoadPath_clear(self);
    Py_XDECREF(self->before);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Whether a storage's answer is what it should be: (record, tid, ...). Sets an error if not. */
static int
is_revision(PyObject *found)
{
    int is_right = PyTuple_CheckExact(found) && PyTuple_GET_SIZE(found) == 3
        && PyBytes_CheckExact(PyTuple_GET_ITEM(found, 0)) && is_oid(PyTuple_GET_ITEM(found, 1));
    if (!is_right)
        PyErr_Format(PyExc_TypeError, "the storage's answer is no revision: %R", found);
    return is_right;
}

/* Return what the storage has for an object, as it was before a tid; NULL with an error set. */
static PyObject *
find_revision(LoadPath *self, PyObject *oid)
{
    if (self->before == NULL || self->load_before == NULL) {
        PyErr_SetString(PyExc_TypeError, "the connection was not opened");
        return NULL;
    }
    PyObject *question[2] = {oid, Py_NewRef(self->before)};
    PyObject *load_before = Py_NewRef(self->load_before);  /* closing replaces it */
    PyObject *found = PyObject_Vectorcall(load_before, question, 2, NULL);
    Py_DECREF(load_before);
    Py_DECREF(question[1]);
    if (found == Py_None)
        Py_SETREF(found, PyObject_CallMethodOneArg((PyObject *)self, name_is_gone, oid));
    if (found != NULL && !is_revision(found))
        Py_CLEAR(found);
    return found;
}

/* Load obj; 0, or -1 with an error set. */
/* Add an oid and a tid to a bytearray. */
static int
note_loaded(PyObject *loaded, PyObject *oid, PyObject *tid)
{
    Py_ssize_t size = PyByteArray_GET_SIZE(loaded);
    if (!is_oid(oid) || !is_oid(tid)) {
        PyErr_BadArgument();
        return -1;
    }
    if (PyByteArray_Resize(loaded, size + 16) < 0)
        return -1;
    memcpy(PyByteArray_AS_STRING(loaded) + size, PyBytes_AS_STRING(oid), 8);
    memcpy(PyByteArray_AS_STRING(loaded) + size + 8, PyBytes_AS_STRING(tid), 8);
    return 0;
}

static int
load(LoadPath *self, cPersistentObject *obj)
{
    PyObject *oid = Py_NewRef(obj->oid == NULL ? Py_None : obj->oid);
    PyObject *found = find_revision(self, oid), *state = NULL, *done = NULL;
    if (found != NULL && self->read_state != NULL) {
        PyObject *question[2] = {(PyObject *)Py_TYPE(obj), PyTuple_GET_ITEM(found, 0)};
        state = PyObject_Vectorcall(self->read_state, question, 2, NULL);
    }
    if (state != NULL)
        done = PyObject_CallMethodOneArg((PyObject *)obj, name_setstate, state);
    if (done != NULL)
        memcpy(obj->serial, PyBytes_AS_STRING(PyTuple_GET_ITEM(found, 1)), 8);
    if (done != NULL && self->loaded != NULL && PyByteArray_CheckExact(self->loaded)
            && note_loaded(self->loaded, oid, PyTuple_GET_ITEM(found, 1)) < 0)
        Py_CLEAR(done);
    if (done != NULL && self->counts_bytes)
        Py_SETREF(done, PyObject_CallMethodObjArgs((PyObject *)self, name_note_size, oid, obj,
                                                   PyTuple_GET_ITEM(found, 0), NULL));
    int result = done == NULL ? -1 : 0;
    Py_XDECREF(found);
    Py_DECREF(oid);
    Py_XDECREF(state);
    Py_XDECREF(done);
    return result;
}

static PyObject *
LoadPath_setstate(LoadPath *self, PyObject *obj)
{
    if (!PER_TypeCheck(obj))
        return PyErr_Format(PyExc_TypeError, "%.100s is not persistent", Py_TYPE(obj)->tp_name);
    unsigned long user = self->user, thread = PyThread_get_thread_ident();
    if (user && user != thread)
        return PyObject_CallMethodNoArgs((PyObject *)self, name_refuse_thread);
    if (Py_EnterRecursiveCall(" while loading an object"))
        return NULL;
    self->user = thread;
    int result = load(self, (cPersistentObject *)obj);
    self->user = user;
    Py_LeaveRecursiveCall();
    if (result == 0) {
        self->load_count++;
        Py_RETURN_NONE;
    }
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *done = PyObject_CallMethodObjArgs((PyObject *)self, name_load_failed, obj, error,
                                                NULL);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return done;
}

static PyMethodDef LoadPath_methods[] = {
    {"setstate", (PyCFunction)LoadPath_setstate, METH_O,
     "Load the state of the ghost *obj* (called when it is first touched)."},
    {NULL},
};

static PyMemberDef LoadPath_members[] = {
    {"_load_before", T_OBJECT, offsetof(LoadPath, load_before), 0},
    {"_read_state", T_OBJECT, offsetof(LoadPath, read_state), 0},
    {"_before", T_OBJECT, offsetof(LoadPath, before), 0},
    {"_loaded", T_OBJECT, offsetof(LoadPath, loaded), 0},
    {"_user", T_ULONG, offsetof(LoadPath, user), 0},
    {"_counts_bytes", T_BOOL, offsetof(LoadPath, counts_bytes), 0},
    {"load_count", T_PYSSIZET, offsetof(LoadPath, load_count), 0},
    {NULL},
};

static PyTypeObject LoadPath_type = {
    BASE(LoadPath),
    .tp_new = PyType_GenericNew,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = (traverseproc)LoadPath_traverse,
    .tp_clear = (inquiry)LoadPath_clear,
    .tp_dealloc = (destructor)LoadPath_dealloc,
    .tp_methods = LoadPath_methods,
    .tp_members = LoadPath_members,
};

/* ---- isolation ---- */

/* The cache of persistent objects, as far as its header makes it known: it begins with the ring
   of its loaded objects, least recently used first. */
struct ccobject_head_struct {
    CACHE_HEAD
};

/* read_since(cache, marker): dict of oid and serial of what was accessed after the marker, other
   objects of its class aside; None if it is not loaded any more. */
static PyObject *
read_since(PyObject *module, PyObject *args)
{
    PyObject *ignored, *found;
    cPersistentObject *marker;
    if (!PyArg_ParseTuple(args, "OO!", &ignored, cPersistenceCAPI->pertype, &marker))
        return NULL;
    if (marker->cache == NULL || marker->ring.r_next == NULL)
        Py_RETURN_NONE;
    found = PyDict_New();  /* before looking at the ring, which a finalizer may change */
    CPersistentRing *home = &marker->cache->ring_home, *place = marker->ring.r_next;
    for (; found != NULL && place != home; place = place->r_next) {
        cPersistentObject *obj = (cPersistentObject *)
            ((char *)place - offsetof(cPersistentObject, ring));
        if (Py_TYPE(obj) == Py_TYPE(marker) || obj->oid == NULL)
            continue;
        PyObject *serial = PyBytes_FromStringAndSize(obj->serial, 8);
        if (serial == NULL || PyDict_SetItem(found, obj->oid, serial) < 0)
            Py_CLEAR(found);
        Py_XDECREF(serial);
    }
    return found;
}

/* ---- the module ---- */

static PyMethodDef functions[] = {
    {"plain_reader", plain_reader, METH_VARARGS, NULL},
    {"reference_loader", reference_loader, METH_VARARGS, NULL},
    {"serializer", serializer, METH_VARARGS, NULL},
    {"reference_maker", reference_maker, METH_VARARGS, NULL},
    {"read_since", read_since, METH_VARARGS, NULL},
    {"plain_revisions", plain_revisions, METH_VARARGS, NULL},
    {"plain_positions", plain_positions, METH_VARARGS, NULL},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "objdb._accelerator", "The load path in C.", -1, functions,
};

PyMODINIT_FUNC
PyInit__accelerator(void)
{
    PyTypeObject *types[] = {&PageTable_type, &RecordReader_type, &LoadPath_type};
    if (getenv("OBJDB_PURE_PYTHON")) {
        PyErr_SetString(PyExc_ImportError, "OBJDB_PURE_PYTHON is set");
        return NULL;
    }
    cPersistenceCAPI = PyCapsule_Import("persistent.cPersistence.CAPI", 0);
    if (cPersistenceCAPI == NULL) {
        PyErr_SetString(PyExc_ImportError, "persistent is used without its own C part");
        return NULL;
    }
    empty_tuple = PyTuple_New(0);
    protocol = PyLong_FromLong(PROTOCOL);
    PyObject *pickle = PyImport_ImportModule("pickle");
    if (pickle != NULL)
        pickle_dumps = PyObject_GetAttrString(pickle, "dumps");
    Py_XDECREF(pickle);
    name_getstate = PyUnicode_InternFromString("__getstate__");
    name_is_gone = PyUnicode_InternFromString("_is_gone");
    name_load_failed = PyUnicode_InternFromString("_load_failed");
    name_note_size = PyUnicode_InternFromString("_note_size");
    name_refuse_thread = PyUnicode_InternFromString("_refuse_thread");
    name_setstate = PyUnicode_InternFromString("__setstate__");
    p_jar = PyObject_GetAttrString((PyObject *)cPersistenceCAPI->pertype, "_p_jar");
    p_oid = PyObject_GetAttrString((PyObject *)cPersistenceCAPI->pertype, "_p_oid");
    if (PyErr_Occurred())
        return NULL;
    if (Py_TYPE(p_jar)->tp_descr_set == NULL || Py_TYPE(p_oid)->tp_descr_set == NULL) {
        PyErr_SetString(PyExc_ImportError, "another release of persistent");
        return NULL;
    }
    if (cPersistenceCAPI->pertype->tp_basicsize != sizeof(cPersistentObject)) {
        PyErr_SetString(PyExc_ImportError, "built for another release of persistent");
        return NULL;
    }
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module != NULL && i < Py_ARRAY_LENGTH(types); i++)
        if (PyModule_AddType(module, types[i]) < 0)
            Py_CLEAR(module);
    return module;
}
