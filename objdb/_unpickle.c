/* Unpickles plain states: what nearly all objects have in their attributes.

   It knows the opcodes that protocol 3 is written with, but for a few rare ones. Those, and what
   makes no sense, are left to pickle, which then begins at the beginning and says what is wrong.
   The errors of what is called on the way are passed on.
   The opcodes are described in Python's pickletools.

   What makes it quick: it reads from memory, makes the names of attributes once, finds classes by
   the bytes of their names, and needs no object of its own. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include "_unpickle.h"

#define ROOM 64            /* before memory is asked for */
#define MARKS_ROOM 32
#define NAMES 512          /* a power of 2 */
#define LONGEST_NAME 32

/* Objects, one after the other: references of ours, or NULL. */
typedef struct {
    PyObject **items;
    Py_ssize_t count, room;
    PyObject *first[ROOM];
} Objects;

typedef struct {
    const unsigned char *at, *end;
    PyObject **held;        /* see plain_unpickle */
    int mark_count;
    Py_ssize_t marks[MARKS_ROOM];
    Objects stack, memo;
} Machine;

static void
begin(Objects *objects)
{
    objects->items = objects->first;
    objects->count = 0;
    objects->room = ROOM;
}

/* Add a new reference; 0 if it is NULL, or there is no memory. */
static int
add(Objects *objects, PyObject *object)
{
    if (object != NULL && objects->count == objects->room) {
        PyObject **items = objects->items == objects->first ? NULL : objects->items;
        items = PyMem_Realloc(items, 2 * objects->room * sizeof(PyObject *));
        if (items == NULL) {
            Py_DECREF(object);
            return 0;
        }
        if (objects->items == objects->first)
            memcpy(items, objects->first, sizeof(objects->first));
        objects->items = items;
        objects->room *= 2;
    }
    if (object != NULL)
        objects->items[objects->count++] = object;
    return object != NULL;
}

static void
drop(Objects *objects, Py_ssize_t down_to)
{
    while (objects->count > down_to)
        Py_DECREF(objects->items[--objects->count]);
}

static void
end(Objects *objects)
{
    drop(objects, 0);
    if (objects->items != objects->first)
        PyMem_Free(objects->items);
}

/* The names of attributes, interned, each where its bytes say. */
static PyObject *names[NAMES];

static PyObject *
text(const unsigned char *bytes, Py_ssize_t size, int is_name)
{
    if (!is_name || size > LONGEST_NAME)
        return PyUnicode_DecodeUTF8((const char *)bytes, size, "surrogatepass");
    uint32_t hash = (uint32_t)size;
    for (Py_ssize_t i = 0; i < size; i++)
        hash = hash * 31 + bytes[i];
    PyObject **place = &names[hash % NAMES];
    if (*place != NULL && PyUnicode_GET_LENGTH(*place) == size
            && memcmp(PyUnicode_1BYTE_DATA(*place), bytes, size) == 0)
        return Py_NewRef(*place);
    PyObject *name = PyUnicode_DecodeUTF8((const char *)bytes, size, "surrogatepass");
    if (name != NULL && PyUnicode_IS_ASCII(name)) {
        PyUnicode_InternInPlace(&name);
        Py_XSETREF(*place, Py_NewRef(name));
    }
    return name;
}

static uint64_t
little(const unsigned char *bytes, int size)
{
    uint64_t number = 0;
    while (size--)
        number = number << 8 | bytes[size];
    return number;
}

static PyObject *
binary_float(const unsigned char *bytes)
{
    uint64_t bits = 0;
    double number;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | bytes[i];
    memcpy(&number, &bits, 8);
    return PyFloat_FromDouble(number);
}

static PyObject *
long_integer(const unsigned char *bytes, int size)
{
    if (size == 0 || size > 8)
        return size ? NULL : PyLong_FromLong(0);
    uint64_t number = little(bytes, size);
    if (size < 8 && bytes[size - 1] & 0x80)
        number |= ~(uint64_t)0 << 8 * size;
    return PyLong_FromLongLong((int64_t)number);
}

/* Whether there is a place on the stack between the last mark and the top. */
static int
is_place(Machine *m, Py_ssize_t place)
{
    Py_ssize_t floor = m->mark_count ? m->marks[m->mark_count - 1] : 0;
    return place >= floor && place <= m->stack.count;
}

/* Replace what is on the stack from a place on by a tuple of it. */
static int
push_tuple(Machine *m, Py_ssize_t from)
{
    if (!is_place(m, from))
        return 0;
    PyObject *tuple = PyTuple_New(m->stack.count - from);
    if (tuple == NULL)
        return 0;
    for (Py_ssize_t i = from; i < m->stack.count; i++)
        PyTuple_SET_ITEM(tuple, i - from, m->stack.items[i]);
    m->stack.count = from;
    return add(&m->stack, tuple);
}

/* Return where the topmost mark was, taking it away; -1 if there is none. */
static Py_ssize_t
pop_mark(Machine *m)
{
    return m->mark_count ? m->marks[--m->mark_count] : -1;
}

static int
append(Machine *m, Py_ssize_t from)
{
    if (!is_place(m, from - 1) || !is_place(m, from)
            || !PyList_CheckExact(m->stack.items[from - 1]))
        return 0;
    for (Py_ssize_t i = from; i < m->stack.count; i++)
        if (PyList_Append(m->stack.items[from - 1], m->stack.items[i]) < 0)
            return 0;
    drop(&m->stack, from);
    return 1;
}

static int
set_items(Machine *m, Py_ssize_t from)
{
    if (!is_place(m, from - 1) || !is_place(m, from) || (m->stack.count - from) % 2
            || !PyDict_CheckExact(m->stack.items[from - 1]))
        return 0;
    for (Py_ssize_t i = from; i < m->stack.count; i += 2)
        if (PyDict_SetItem(m->stack.items[from - 1], m->stack.items[i], m->stack.items[i + 1]) < 0)
            return 0;
    drop(&m->stack, from);
    return 1;
}

/* Whether the next object will be a key of the outermost dict: the name of an attribute. */
static int
is_name_next(Machine *m)
{
    return m->stack.count >= 1 && PyDict_CheckExact(m->stack.items[0])
        && (m->mark_count == 0 ? m->stack.count == 1
            : m->mark_count == 1 && m->marks[0] == 1 && m->stack.count % 2 == 1);
}

/* Put the class or function on the stack whose module and name, a line each, come next. */
static int
push_global(Machine *m)
{
    const unsigned char *start = m->at, *line = memchr(start, '\n', m->end - start);
    line = line == NULL ? NULL : memchr(line + 1, '\n', m->end - line - 1);
    if (line == NULL)
        return 0;
    m->at = line + 1;
    PyObject *lines = PyBytes_FromStringAndSize((const char *)start, m->at - start);
    if (lines == NULL)
        return 0;
    PyObject *found = Py_XNewRef(PyDict_GetItemWithError(m->held[0], lines));
    if (found == NULL && !PyErr_Occurred())
        found = PyObject_CallOneArg(m->held[1], lines);
    Py_DECREF(lines);
    return add(&m->stack, found);
}

/* Call the function below the top of the stack with the tuple on top of it. */
static int
call(Machine *m)
{
    Py_ssize_t top = m->stack.count - 1;
    if (!is_place(m, top - 1) || !PyTuple_CheckExact(m->stack.items[top]))
        return 0;
    PyObject *made = PyObject_CallObject(m->stack.items[top - 1], m->stack.items[top]);
    drop(&m->stack, top - 1);
    return add(&m->stack, made);
}

static int
refer(Machine *m)
{
    if (!is_place(m, m->stack.count - 1))
        return 0;
    PyObject *made = PyObject_CallOneArg(m->held[2], m->stack.items[m->stack.count - 1]);
    drop(&m->stack, m->stack.count - 1);
    return add(&m->stack, made);
}

/* Make an object of the class below the top of the stack, with the arguments on top of it. */
static int
make(Machine *m)
{
    Py_ssize_t top = m->stack.count - 1;
    if (!is_place(m, top - 1) || !PyTuple_CheckExact(m->stack.items[top])
            || !PyType_Check(m->stack.items[top - 1]))
        return 0;
    PyTypeObject *type = (PyTypeObject *)m->stack.items[top - 1];
    PyObject *made = type->tp_new ? type->tp_new(type, m->stack.items[top], NULL) : NULL;
    drop(&m->stack, top - 1);
    return add(&m->stack, made);
}

/* Set what a dict names: in a dict, the names of attributes interned; or as attributes. */
static int
update(PyObject *object, PyObject *state, int are_attributes)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(state, &position, &key, &value)) {
        int failed;
        Py_INCREF(key);
        Py_INCREF(value);
        if (PyUnicode_CheckExact(key))
            PyUnicode_InternInPlace(&key);
        failed = are_attributes ? PyObject_SetAttr(object, key, value)
                                : PyObject_SetItem(object, key, value);
        Py_DECREF(key);
        Py_DECREF(value);
        if (failed)
            return 0;
    }
    return 1;
}

/* Give the object below the top of the stack the state on top of it. */
static int
build(Machine *m)
{
    Py_ssize_t top = m->stack.count - 1;
    if (!is_place(m, top - 1))
        return 0;
    PyObject *object = m->stack.items[top - 1], *state = m->stack.items[top], *slots = NULL;
    PyObject *set = PyObject_GetAttrString(object, "__setstate__"), *done = NULL;
    int is_done;
    if (set != NULL) {
        done = PyObject_CallOneArg(set, state);
        is_done = done != NULL;
        Py_XDECREF(done);
        Py_DECREF(set);
    }
    else if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        return 0;
    else {
        PyErr_Clear();
        if (PyTuple_CheckExact(state) && PyTuple_GET_SIZE(state) == 2) {
            slots = PyTuple_GET_ITEM(state, 1);
            state = PyTuple_GET_ITEM(state, 0);
        }
        is_done = state == Py_None || PyDict_CheckExact(state);
        if (is_done && state != Py_None) {
            PyObject *attributes = PyObject_GetAttrString(object, "__dict__");
            is_done = attributes != NULL && update(attributes, state, 0);
            Py_XDECREF(attributes);
        }
        if (is_done && slots != NULL && slots != Py_None)
            is_done = PyDict_CheckExact(slots) && update(object, slots, 1);
    }
    drop(&m->stack, top);
    return is_done;
}

static int
remember(Machine *m, Py_ssize_t number)
{
    return number == m->memo.count && is_place(m, m->stack.count - 1)
        && add(&m->memo, Py_NewRef(m->stack.items[m->stack.count - 1]));
}

static int
recall(Machine *m, Py_ssize_t number)
{
    return number >= 0 && number < m->memo.count && add(&m->stack, Py_NewRef(m->memo.items[number]));
}

/* Do one opcode; 0 if it is none of ours, or does not go. */
static int
step(Machine *m, unsigned char opcode)
{
    const unsigned char *a = m->at;
    Py_ssize_t left = m->end - a, size;
#define NEED(n) do { if ((n) < 0 || left < (n)) return 0; m->at += (n); } while (0)
    switch (opcode) {
    case 'X': case 'B': case 'C':
        NEED(opcode == 'C' ? 1 : 4);
        size = (Py_ssize_t)little(a, opcode == 'C' ? 1 : 4);
        a = m->at;
        left = m->end - a;
        NEED(size);
        return add(&m->stack, opcode == 'X' ? text(a, size, is_name_next(m))
                                     : PyBytes_FromStringAndSize((const char *)a, size));
    case 'K': NEED(1); return add(&m->stack, PyLong_FromLong(a[0]));
    case 'M': NEED(2); return add(&m->stack, PyLong_FromLong((long)little(a, 2)));
    case 'J': NEED(4); return add(&m->stack, PyLong_FromLong((int32_t)little(a, 4)));
    case 0x8a: NEED(1); left--; NEED(a[0]); return add(&m->stack, long_integer(a + 1, a[0]));
    case 'G': NEED(8); return add(&m->stack, binary_float(a));
    case 'N': return add(&m->stack, Py_NewRef(Py_None));
    case 0x88: return add(&m->stack, Py_NewRef(Py_True));
    case 0x89: return add(&m->stack, Py_NewRef(Py_False));
    case '}': return add(&m->stack, PyDict_New());
    case ']': return add(&m->stack, PyList_New(0));
    case ')': return add(&m->stack, PyTuple_New(0));
    case 't': return push_tuple(m, pop_mark(m));
    case 0x85: case 0x86: case 0x87: return push_tuple(m, m->stack.count - (opcode - 0x84));
    case 'a': return append(m, m->stack.count - 1);
    case 'e': return append(m, pop_mark(m));
    case 's': return set_items(m, m->stack.count - 2);
    case 'u': return set_items(m, pop_mark(m));
    case '(':
        if (m->mark_count == MARKS_ROOM)
            return 0;
        m->marks[m->mark_count++] = m->stack.count;
        return 1;
    case 'q': NEED(1); return remember(m, a[0]);
    case 'r': NEED(4); return remember(m, (Py_ssize_t)little(a, 4));
    case 'h': NEED(1); return recall(m, a[0]);
    case 'j': NEED(4); return recall(m, (Py_ssize_t)little(a, 4));
    case 0x81: return make(m);
    case 'b': return build(m);
    case 'c': return push_global(m);
    case 'R': return call(m);
    case 'Q': return refer(m);
    default: return 0;
    }
#undef NEED
}

PyObject *
plain_unpickle(const char *bytes, Py_ssize_t size, PyObject *memo, PyObject **held)
{
    Machine m;
    m.at = (const unsigned char *)bytes;
    m.end = m.at + size;
    m.held = held;
    m.mark_count = 0;
    begin(&m.stack);
    begin(&m.memo);
    if (memo != NULL)
        add(&m.memo, Py_NewRef(memo));
    PyObject *state = NULL;
    while (m.at < m.end) {
        unsigned char opcode = *m.at++;
        if (opcode == '.') {
            if (m.at == m.end && m.stack.count == 1 && m.mark_count == 0)
                state = Py_NewRef(m.stack.items[0]);
            break;
        }
        if (!step(&m, opcode))
            break;
    }
    end(&m.stack);
    end(&m.memo);
    return state;
}
