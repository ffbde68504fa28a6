// A call of a small layer, checked and made in C: what it costs is then less than the layer itself.
//
// An extension module in Python's limited C interface, so one build serves every Python from 3.10 on.
// It knows nothing of torch: which attributes of a tensor must have which values, which functions say
// that nothing is in the way, and how results are allocated, is said when a Plan is made. Where
// anything is not as said, a call gives None, and Python's code says what is wrong or does it slowly.

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../symrnn.h"

namespace {

using Advance = int (*)(const symrnn_stream *, int64_t, int64_t, const void *, void *, void *, int);
using Sample = uint64_t (*)(int64_t, const void *const *, const int64_t *);

PyObject *data_ptr, *version, *is_contiguous;  // names

// What an object must be: of exactly this type, its attributes and methods with these values.
struct Checks {
    PyObject *type, *attributes, *methods;  // the latter two: tuples of names and values in turn
};

// What a parameter was like when it was packed.
struct Source {
    PyObject *parameter;  // or None
    long long version;
    unsigned long long address;
};

struct Plan {
    PyObject_HEAD
    PyObject *held;    // a tuple with all that the pointers below lead to
    PyObject *guards;  // a tuple of functions and what each must give, in turn
    Checks x, h, out;
    PyObject *make, *like_output, *like_state;  // make(like_…) allocates
    PyObject *threads;                          // a function, or None for one thread
    Advance advance;
    const symrnn_layer *layers;
    int count, states;
    bool cell;
    int64_t steps, batch;
    size_t output_bytes, state_bytes;
    void *own_h, *own_c;  // the state of a stream; null: each call brings its own
    Source *sources;
    Py_ssize_t source_count;
    Sample sample;
    long long sampled_count;
    const void *const *sampled;
    const int64_t *sampled_bytes;
    unsigned long long sampled_hash;
};

// These return 1 for true, 0 for false, -1 for an error.

int is_same(PyObject *found, PyObject *expected) {
    if (!found) return -1;
    const int same = found == expected ? 1 : PyObject_RichCompareBool(found, expected, Py_EQ);
    Py_DECREF(found);
    return same;
}

int holds(const Checks &checks, PyObject *object) {
    if (reinterpret_cast<PyObject *>(Py_TYPE(object)) != checks.type) return 0;
    for (Py_ssize_t k = 0; k < PyTuple_Size(checks.attributes); k += 2) {
        const int same = is_same(PyObject_GetAttr(object, PyTuple_GetItem(checks.attributes, k)),
                                 PyTuple_GetItem(checks.attributes, k + 1));
        if (same != 1) return same;
    }
    for (Py_ssize_t k = 0; k < PyTuple_Size(checks.methods); k += 2) {
        PyObject *const name = PyTuple_GetItem(checks.methods, k);
        const int same = is_same(PyObject_CallMethodObjArgs(object, name, nullptr),
                                 PyTuple_GetItem(checks.methods, k + 1));
        if (same != 1) return same;
    }
    return 1;
}

int nothing_in_the_way(PyObject *guards) {
    for (Py_ssize_t k = 0; k < PyTuple_Size(guards); k += 2) {
        const int same = is_same(PyObject_CallObject(PyTuple_GetItem(guards, k), nullptr),
                                 PyTuple_GetItem(guards, k + 1));
        if (same != 1) return same;
    }
    return 1;
}

// False with an error set.
bool integer_of(PyObject *found, unsigned long long *value) {
    if (!found) return false;
    *value = PyLong_AsUnsignedLongLong(found);
    Py_DECREF(found);
    return !PyErr_Occurred();
}

bool address_of(PyObject *tensor, void **address) {
    unsigned long long value;
    if (!integer_of(PyObject_CallMethodObjArgs(tensor, data_ptr, nullptr), &value)) return false;
    *address = reinterpret_cast<void *>(value);
    return true;
}

int unchanged(const Plan &plan, PyObject *parameters) {
    PyObject *key, *now;
    Py_ssize_t position = 0, k = 0;
    while (PyDict_Next(parameters, &position, &key, &now)) {
        if (k == plan.source_count) return 0;
        const Source &was = plan.sources[k++];
        if (now != was.parameter) return 0;
        if (now == Py_None) continue;
        unsigned long long value;
        if (!integer_of(PyObject_GetAttr(now, version), &value)) return -1;
        if (value != static_cast<unsigned long long>(was.version)) return 0;
        if (!integer_of(PyObject_CallMethodObjArgs(now, data_ptr, nullptr), &value)) return -1;
        if (value != was.address) return 0;
        const int same = is_same(PyObject_CallMethodObjArgs(now, is_contiguous, nullptr), Py_True);
        if (same != 1) return same;
    }
    if (k != plan.source_count) return 0;
    return plan.sample(plan.sampled_count, plan.sampled, plan.sampled_bytes) == plan.sampled_hash;
}

// The kernels' call. False with an error set.
bool advance(const Plan &plan, void *h, void *c, void *x, void *output) {
    unsigned long long threads = 1;
    if (plan.threads != Py_None && !integer_of(PyObject_CallObject(plan.threads, nullptr), &threads))
        return false;
    const symrnn_stream stream{plan.count, plan.layers, h, c};
    void *between = nullptr;
    if (plan.count > 1 && !(between = malloc(plan.output_bytes))) return PyErr_NoMemory(), false;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = plan.advance(&stream, plan.steps, plan.batch, x, between, output,
                          static_cast<int>(threads));
    Py_END_ALLOW_THREADS
    free(between);
    if (status) PyErr_Format(PyExc_RuntimeError, "symrnn's native kernels: status %d", status);
    return status == 0;
}

PyObject *nothing(int answer) {  // for a check that did not give 1
    if (answer < 0) return nullptr;
    Py_RETURN_NONE;
}

// step(x, out): the output of a stream's next steps, in `out` or, if that is None, in a new tensor.
PyObject *plan_step(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    const Plan &plan = *reinterpret_cast<Plan *>(self);
    if (count != 2) return PyErr_Format(PyExc_TypeError, "step takes 2 arguments, got %zd", count);
    PyObject *const x = arguments[0], *out = arguments[1];
    int answer = holds(plan.x, x);
    if (answer == 1) answer = nothing_in_the_way(plan.guards);
    if (answer == 1 && out != Py_None) answer = holds(plan.out, out);
    if (answer != 1) return nothing(answer);
    if (out == Py_None) out = PyObject_CallFunctionObjArgs(plan.make, plan.like_output, nullptr);
    else Py_INCREF(out);
    void *from, *to;
    if (out && address_of(x, &from) && address_of(out, &to) &&
        advance(plan, plan.own_h, plan.own_c, from, to))
        return out;
    Py_XDECREF(out);
    return nullptr;
}

// call(parameters, x, hx): what a layer gives, (output, hx), a cell hx.
PyObject *plan_call(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    const Plan &plan = *reinterpret_cast<Plan *>(self);
    if (count != 3) return PyErr_Format(PyExc_TypeError, "call takes 3 arguments, got %zd", count);
    PyObject *const x = arguments[1], *const hx = arguments[2];
    PyObject *given[2] = {nullptr, nullptr};
    if (hx != Py_None && plan.states == 1) given[0] = hx;
    else if (hx != Py_None) {
        if (Py_TYPE(hx) != &PyTuple_Type || PyTuple_Size(hx) != plan.states) Py_RETURN_NONE;
        for (int k = 0; k < plan.states; ++k) given[k] = PyTuple_GetItem(hx, k);
    }
    int answer = holds(plan.x, x);
    for (int k = 0; k < plan.states && answer == 1; ++k)
        if (given[k]) answer = holds(plan.h, given[k]);
    if (answer == 1) answer = nothing_in_the_way(plan.guards);
    if (answer == 1) answer = unchanged(plan, arguments[0]);
    if (answer != 1) return nothing(answer);

    PyObject *state[2] = {nullptr, nullptr}, *output = nullptr;
    void *at[2] = {nullptr, nullptr}, *from = nullptr, *to = nullptr;
    bool good = address_of(x, &from);
    for (int k = 0; k < plan.states && good; ++k) {
        state[k] = PyObject_CallFunctionObjArgs(plan.make, plan.like_state, nullptr);
        void *source = nullptr;
        good = state[k] && address_of(state[k], &at[k]) && (!given[k] || address_of(given[k], &source));
        if (good && source) memcpy(at[k], source, plan.state_bytes);
        else if (good) memset(at[k], 0, plan.state_bytes);
    }
    if (good && plan.cell) to = at[0];  // the kernels write the same numbers to both
    else if (good) {
        output = PyObject_CallFunctionObjArgs(plan.make, plan.like_output, nullptr);
        good = output && address_of(output, &to);
    }
    good = good && advance(plan, at[0], at[1], from, to);
    PyObject *result = nullptr;
    if (good) {
        result = plan.states == 2 ? PyTuple_Pack(2, state[0], state[1]) : state[0];
        if (plan.states == 1) Py_INCREF(result);
        if (result && !plan.cell) {
            PyObject *const both = PyTuple_Pack(2, output, result);
            Py_DECREF(result);
            result = both;
        }
    }
    Py_XDECREF(state[0]);
    Py_XDECREF(state[1]);
    Py_XDECREF(output);
    return result;
}

bool read_checks(PyObject *from, Checks *to) {
    if (!PyTuple_Check(from)) {
        PyErr_SetString(PyExc_TypeError, "checks should be a tuple");
        return false;
    }
    return PyArg_ParseTuple(from, "OO!O!", &to->type, &PyTuple_Type, &to->attributes, &PyTuple_Type,
                            &to->methods);
}

// Plan(guards, x, h, out, make, like_output, like_state, threads,
//      (advance, layers, count, states, cell, steps, batch, output_bytes, state_bytes, h, c),
//      (sources, sample, count, arrays, bytes, hash), alive)
PyObject *plan_new(PyTypeObject *type, PyObject *arguments, PyObject *) {
    PyObject *x, *h, *out, *numbers, *sources, *list, *alive;
    unsigned long long at_advance, at_layers, at_h, at_c, at_sample, at_arrays, at_bytes;
    long long steps, batch;
    int cell;
    auto *const allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    auto *const plan = reinterpret_cast<Plan *>(allocate(type, 0));  // all zero
    if (!plan) return nullptr;
    if (!PyArg_ParseTuple(arguments, "O!OOOOOOOO!O!O", &PyTuple_Type, &plan->guards, &x, &h, &out,
                          &plan->make, &plan->like_output, &plan->like_state, &plan->threads,
                          &PyTuple_Type, &numbers, &PyTuple_Type, &sources, &alive) ||
        !read_checks(x, &plan->x) || !read_checks(h, &plan->h) || !read_checks(out, &plan->out) ||
        !PyArg_ParseTuple(numbers, "KKiipLLnnKK", &at_advance, &at_layers, &plan->count, &plan->states,
                          &cell, &steps, &batch, &plan->output_bytes, &plan->state_bytes, &at_h,
                          &at_c) ||
        !PyArg_ParseTuple(sources, "O!KLKKK", &PyTuple_Type, &list, &at_sample, &plan->sampled_count,
                          &at_arrays, &at_bytes, &plan->sampled_hash)) {
        Py_DECREF(plan);
        return nullptr;
    }
    plan->advance = reinterpret_cast<Advance>(at_advance);
    plan->layers = reinterpret_cast<const symrnn_layer *>(at_layers);
    plan->cell = cell;
    plan->steps = steps, plan->batch = batch;
    plan->own_h = reinterpret_cast<void *>(at_h), plan->own_c = reinterpret_cast<void *>(at_c);
    plan->sample = reinterpret_cast<Sample>(at_sample);
    plan->sampled = reinterpret_cast<const void *const *>(at_arrays);
    plan->sampled_bytes = reinterpret_cast<const int64_t *>(at_bytes);
    Py_INCREF(arguments);
    plan->held = arguments;
    plan->source_count = PyTuple_Size(list);
    plan->sources = static_cast<Source *>(calloc(plan->source_count + 1, sizeof(Source)));
    bool good = plan->sources != nullptr;
    for (Py_ssize_t k = 0; k < plan->source_count && good; ++k) {
        Source &source = plan->sources[k];
        good = PyArg_ParseTuple(PyTuple_GetItem(list, k), "OLK", &source.parameter, &source.version,
                                &source.address);
    }
    if (good) return reinterpret_cast<PyObject *>(plan);
    if (!PyErr_Occurred()) PyErr_NoMemory();
    Py_DECREF(plan);
    return nullptr;
}

int plan_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(reinterpret_cast<Plan *>(self)->held);
    return 0;
}

int plan_clear(PyObject *self) {
    Py_CLEAR(reinterpret_cast<Plan *>(self)->held);
    return 0;
}

void plan_free(PyObject *self) {
    PyObject_GC_UnTrack(self);
    PyTypeObject *const type = Py_TYPE(self);
    plan_clear(self);
    free(reinterpret_cast<Plan *>(self)->sources);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

template <typename Function>
PyCFunction method(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef plan_methods[] = {
    {"step", method(plan_step), METH_FASTCALL, "step(x, out): a stream's next output, or None."},
    {"call", method(plan_call), METH_FASTCALL, "call(parameters, x, hx): a module's result, or None."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot plan_slots[] = {
    {Py_tp_doc, const_cast<char *>("A call of packed layers, for one shape of input.")},
    {Py_tp_new, reinterpret_cast<void *>(plan_new)},
    {Py_tp_traverse, reinterpret_cast<void *>(plan_traverse)},
    {Py_tp_clear, reinterpret_cast<void *>(plan_clear)},
    {Py_tp_dealloc, reinterpret_cast<void *>(plan_free)},
    {Py_tp_methods, plan_methods},
    {0, nullptr}};

PyType_Spec plan_spec = {"symrnn.native._calls.Plan", sizeof(Plan), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, plan_slots};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_calls", nullptr, -1, nullptr,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__calls(void) {
    data_ptr = PyUnicode_InternFromString("data_ptr");
    version = PyUnicode_InternFromString("_version");
    is_contiguous = PyUnicode_InternFromString("is_contiguous");
    PyObject *const module = PyModule_Create(&definition);
    PyObject *const plan = PyType_FromSpec(&plan_spec);
    if (!module || !plan || !data_ptr || !version || !is_contiguous ||
        PyModule_AddObjectRef(module, "Plan", plan) < 0 ||
        PyModule_AddIntConstant(module, "INTERFACE", SYMRNN_INTERFACE) < 0 ||
        PyModule_AddStringConstant(module, "SOURCES", SYMRNN_SOURCES) < 0)
        return nullptr;
    Py_DECREF(plan);
    return module;
}
