// The functions of symrnn.h. Arguments are checked here, and nowhere after.

#include <algorithm>

#include "jobs.h"

namespace symrnn {
namespace {

// Of one array: sizes multiply without overflow.
constexpr int64_t MAX_ELEMENTS = int64_t(1) << 40;

bool aligned(const void *to) { return reinterpret_cast<uintptr_t>(to) % 64 == 0; }

// No kernel needs more than the alignment of a number. Memory of malloc passes, a place within a
// number does not.
bool readable(const void *packed) { return reinterpret_cast<uintptr_t>(packed) % 16 == 0; }

bool known(int dtype) {
    return (dtype >= SYMRNN_FLOAT && dtype <= SYMRNN_BFLOAT16) || dtype == SYMRNN_INT8;
}

int check_map(const symrnn_map *map, int64_t from, int64_t to) {
    if (map->from != from || map->to != to) return SYMRNN_SIZE;
    if (!map->start || (map->start[map->to] > 0 && (!map->index || !map->scale))) return SYMRNN_NULL;
    if (map->start[0] != 0) return SYMRNN_MAP;
    for (int32_t i = 0; i < map->to; ++i)
        if (map->start[i + 1] < map->start[i]) return SYMRNN_MAP;
    for (int32_t k = 0; k < map->start[map->to]; ++k)
        if (map->index[k] < 0 || map->index[k] >= from) return SYMRNN_MAP;
    return SYMRNN_OK;
}

int check_skew(const symrnn_product &w, bool folded) {
    const symrnn_skew &skew = *w.skew;
    if (!skew.packed) return SYMRNN_NULL;
    if (skew.rank < 1 || skew.rank > MAX_ELEMENTS / w.rows || skew.gates < 1 ||
        skew.gates >= 1 << w.gates || w.rows != w.columns || !readable(skew.packed))
        return SYMRNN_SIZE;
    return folded ? SYMRNN_MAP : SYMRNN_OK;
}

int check_product(const symrnn_product *w, bool transposed) {
    if (!w) return SYMRNN_NULL;
    if (!known(w->dtype) && w->dtype != SYMRNN_BFLOAT16_BOTH) return SYMRNN_DTYPE;
    if (transposed && w->dtype == SYMRNN_INT8) return SYMRNN_DTYPE;
    if (w->gates < 1 || w->gates > 4 || w->rows < 1 || w->columns < 1 || w->terms < 1 ||
        w->terms > MAX_TERMS)
        return SYMRNN_SIZE;
    if (!w->term) return SYMRNN_NULL;
    const int all = (1 << w->gates) - 1;
    int served = 0;
    const bool folded = w->term[0].inputs || w->term[0].outputs;
    for (int n = 0; n < w->terms; ++n) {
        const symrnn_term &t = w->term[n];
        if (!t.packed) return SYMRNN_NULL;
        if (!readable(t.packed)) return SYMRNN_SIZE;
        if (t.rows < 1 || t.columns < 1 || t.gates < 1 || t.gates > all) return SYMRNN_SIZE;
        if (t.symmetric < 0 || (t.symmetric && t.rows != t.columns)) return SYMRNN_SIZE;
        if (w->dtype == SYMRNN_INT8 && t.columns > INT8_COLUMNS) return SYMRNN_SIZE;
        if (static_cast<bool>(t.inputs || t.outputs) != folded) return SYMRNN_MAP;
        if (!folded && (served & t.gates)) return SYMRNN_SIZE;
        served |= t.gates;
        if (!t.inputs && t.columns != w->columns) return SYMRNN_SIZE;
        if (!t.outputs && t.rows != w->rows) return SYMRNN_SIZE;
        if (t.inputs)
            if (int bad = check_map(t.inputs, w->columns, t.columns)) return bad;
        if (t.outputs)
            if (int bad = check_map(t.outputs, t.rows, w->rows)) return bad;
        if (!transposed) continue;
        if (!t.inputs != !t.inputs_adjoint || !t.outputs != !t.outputs_adjoint) return SYMRNN_NULL;
        if (t.inputs)
            if (int bad = check_map(t.inputs_adjoint, t.columns, w->columns)) return bad;
        if (t.outputs)
            if (int bad = check_map(t.outputs_adjoint, w->rows, t.rows)) return bad;
    }
    if (served != all) return SYMRNN_SIZE;
    return w->skew ? check_skew(*w, folded) : SYMRNN_OK;
}

int check_steps(int64_t steps, int64_t batch, const int64_t *lengths) {
    if (steps < 1 || batch < 0) return SYMRNN_SIZE;
    if (!lengths || batch == 0) return SYMRNN_OK;
    if (lengths[0] != batch) return SYMRNN_LENGTHS;
    for (int64_t t = 0; t < steps; ++t)
        if (lengths[t] < 1 || (t > 0 && lengths[t] > lengths[t - 1])) return SYMRNN_LENGTHS;
    return SYMRNN_OK;
}

// Whether arrays of so many rows would exceed any memory, and their sizes int64_t.
bool too_many(int64_t steps, int64_t batch, const symrnn_product *w, const symrnn_product *v) {
    int64_t side = 1;
    for (const symrnn_product *product : {w, v}) {
        if (!product) continue;
        side = std::max<int64_t>({side, product->rows, product->columns});
        if (product->skew) side = std::max<int64_t>(side, 2 * int64_t(product->skew->rank));
        for (int n = 0; n < product->terms; ++n)
            side = std::max<int64_t>({side, product->term[n].rows, product->term[n].columns});
    }
    const int64_t most = MAX_ELEMENTS / (4 * side + SIDE);
    return steps > most || batch > most / steps;
}

int check_layer(const symrnn_layer *layer, bool backward) {
    if (!layer || !layer->hh) return SYMRNN_NULL;
    const int gates = gates_of(layer->mode);
    if (!gates) return SYMRNN_MODE;
    if (int bad = check_product(layer->hh, backward)) return bad;
    const symrnn_product &hh = *layer->hh;
    if (hh.gates != gates || hh.rows != hh.columns) return SYMRNN_SIZE;
    if (!backward && layer->ih) {
        if (int bad = check_product(layer->ih, false)) return bad;
        if (layer->ih->gates != gates || layer->ih->rows != hh.rows) return SYMRNN_SIZE;
        if (layer->ih->dtype != hh.dtype) return SYMRNN_DTYPE;
    }
    return SYMRNN_OK;
}

int check_matrices(int symmetric, int64_t rows, int64_t columns, int gates, int dtype) {
    if (symmetric < 0 || (symmetric && rows != columns)) return SYMRNN_SIZE;
    if (rows < 1 || columns < 1 || gates < 1 || gates > 4) return SYMRNN_SIZE;
    if (rows > MAX_ELEMENTS / columns) return SYMRNN_SIZE;
    if (dtype == SYMRNN_INT8 && columns > INT8_COLUMNS) return SYMRNN_SIZE;
    return SYMRNN_OK;
}

int check_triangles(int64_t side, int64_t block, int gates, int dtype) {
    if (block < 1 || (SIDE % block && block % SIDE && block < side)) return SYMRNN_SIZE;
    return check_matrices(1, side, side, gates, dtype);
}

// One block, which is all of the matrix, has whole tiles too.
Triangles triangles(int64_t side, int64_t block, int gates) {
    return {side, block < side ? block : tiles_of(side) * SIDE, gates};
}

struct Reading {
    const char *from;
    int64_t bytes;
    int repeat, shares;
    float sums[MAX_SHARES];

    bool prepare() { return true; }
    void run(Team &team) {
        for (int n = 0; n < repeat; ++n)
            team.each(shares, [&](int share) {
                const int64_t first = bytes * share / shares, last = bytes * (share + 1) / shares;
                sums[share] = cpu().read(from + first, last - first);
            });
    }
};

}  // namespace
}  // namespace symrnn

using namespace symrnn;

int symrnn_interface(void) { return SYMRNN_INTERFACE; }

const char *symrnn_message(int status) {
    switch (status) {
    case SYMRNN_OK: return "no error";
    case SYMRNN_NULL: return "a pointer that must not be null is";
    case SYMRNN_SIZE:
        return "a size is out of range or does not fit another, or an address its alignment";
    case SYMRNN_DTYPE: return "a dtype that is unknown or not allowed here";
    case SYMRNN_MODE: return "an unknown kind of layer";
    case SYMRNN_LENGTHS: return "lengths should begin with the batch, never grow, and be positive";
    case SYMRNN_MAP: return "a map whose indices lead outside, or maps of some terms only";
    case SYMRNN_MEMORY: return "out of memory";
    case SYMRNN_CPU: return "kernels that this processor or this build does not have";
    case SYMRNN_FIT: return "a layer that does not fit this GPU, or is none that it can run";
    case SYMRNN_GPU: return "an error of CUDA";
    case SYMRNN_FILE: return "a file that cannot be read, or is no model";
    case SYMRNN_TOKEN: return "a token that the model does not know";
    case SYMRNN_LOGITS: return "logits of which there is no softmax";
    case SYMRNN_TEXT: return "text that cannot be encoded, or a model that has none";
    default: return "an unknown status";
    }
}

const char *symrnn_cpu(void) { return cpu().name; }

int symrnn_use_cpu(const char *name) {
    if (!name) return SYMRNN_NULL;
    return use_cpu(name) ? SYMRNN_OK : SYMRNN_CPU;
}

int64_t symrnn_packed_length(int symmetric, int64_t rows, int64_t columns, int gates, int dtype) {
    if (int bad = check_matrices(symmetric, rows, columns, gates, dtype)) return -bad;
    if (dtype == SYMRNN_INT8) return packed_bytes(dtype, symmetric, rows, columns, gates);
    return known(dtype) || dtype == SYMRNN_HALF ? packed_length(symmetric, rows, columns, gates)
                                                : -SYMRNN_DTYPE;
}

int symrnn_pack(int symmetric, int64_t rows, int64_t columns, int gates, int from_dtype,
                const void *from, int64_t gate_stride, int64_t row_stride, int to_dtype, void *to,
                int threads) {
    if (!from || !to) return SYMRNN_NULL;
    if (int bad = check_matrices(symmetric, rows, columns, gates, to_dtype)) return bad;
    if (gate_stride < 0 || row_stride < columns || !aligned(to)) return SYMRNN_SIZE;
    const Matrices shape{symmetric, rows, columns, gates};
    if (from_dtype == SYMRNN_FLOAT && to_dtype != SYMRNN_DOUBLE && known(to_dtype))
        return pack<float>(shape, from, gate_stride, row_stride, to_dtype, to, threads);
    if (from_dtype == SYMRNN_DOUBLE && to_dtype == SYMRNN_DOUBLE)
        return pack<double>(shape, from, gate_stride, row_stride, to_dtype, to, threads);
    return SYMRNN_DTYPE;
}

int symrnn_pack_triangles(int64_t side, int64_t block, int gates, int from_dtype, const void *from,
                          int64_t gate_stride, double scale, int to_dtype, void *to, int threads) {
    if (!from || !to) return SYMRNN_NULL;
    if (int bad = check_triangles(side, block, gates, to_dtype)) return bad;
    if (gate_stride < 0 || !aligned(to)) return SYMRNN_SIZE;
    const Triangles shape = triangles(side, block, gates);
    if (from_dtype == SYMRNN_FLOAT && to_dtype != SYMRNN_DOUBLE && known(to_dtype))
        return pack_triangles<float>(shape, from, gate_stride, scale, to_dtype, to, threads);
    if (from_dtype == SYMRNN_DOUBLE && to_dtype == SYMRNN_DOUBLE)
        return pack_triangles<double>(shape, from, gate_stride, scale, to_dtype, to, threads);
    return SYMRNN_DTYPE;
}

int symrnn_triangle_adjoint(int64_t side, int64_t block, int gates, int dtype, const void *from,
                            double scale, void *to, int threads) {
    if (!from || !to) return SYMRNN_NULL;
    if (int bad = check_triangles(side, block, gates, dtype)) return bad;
    const Triangles shape = triangles(side, block, gates);
    if (dtype == SYMRNN_FLOAT) return triangle_adjoint<float>(shape, from, scale, to, threads);
    if (dtype == SYMRNN_DOUBLE) return triangle_adjoint<double>(shape, from, scale, to, threads);
    return SYMRNN_DTYPE;
}

int symrnn_unpack(int symmetric, int64_t rows, int64_t columns, int gates, int from_dtype,
                  const void *from, void *to) {
    if (!from || !to) return SYMRNN_NULL;
    if (int bad = check_matrices(symmetric, rows, columns, gates, from_dtype)) return bad;
    if (!readable(from)) return SYMRNN_SIZE;
    if (!known(from_dtype)) return SYMRNN_DTYPE;
    const Matrices shape{symmetric, rows, columns, gates};
    (from_dtype == SYMRNN_DOUBLE ? unpack<double> : unpack<float>)(shape, from_dtype, from, to);
    return SYMRNN_OK;
}

int symrnn_multiply(const symrnn_product *w, int transposed, int64_t batch, const void *x, void *y,
                    int repeat, int threads) {
    if (int bad = check_product(w, transposed)) return bad;
    if (batch < 0 || repeat < 1 || too_many(1, batch, w, nullptr)) return SYMRNN_SIZE;
    if (batch == 0) return SYMRNN_OK;
    if (!x || !y) return SYMRNN_NULL;
    if (w->dtype == SYMRNN_DOUBLE)
        return multiply<double>(*w, transposed, batch, x, y, repeat, threads);
    return multiply<float>(*w, transposed, batch, x, y, repeat, threads);
}

int symrnn_forward(const symrnn_layer *layer, int64_t steps, int64_t batch, const int64_t *lengths,
                   int reverse, const void *x, void *gates, void *saved_cells, const void *h0,
                   const void *c0, void *output, void *hn, void *cn, int threads) {
    if (int bad = check_layer(layer, false)) return bad;
    if (int bad = check_steps(steps, batch, lengths)) return bad;
    if (too_many(steps, batch, layer->hh, layer->ih)) return SYMRNN_SIZE;
    if (batch == 0) return SYMRNN_OK;
    const bool lstm = layer->mode == SYMRNN_LSTM;
    if (!output || !hn || (layer->ih ? !x : !gates)) return SYMRNN_NULL;
    if (lstm && !cn) return SYMRNN_NULL;
    const Call call{*layer, steps, batch, lengths, reverse != 0, threads};
    const auto run = layer->hh->dtype == SYMRNN_DOUBLE ? forward<double> : forward<float>;
    return run(call, {x, gates, saved_cells, h0, c0, output, hn, cn});
}

int symrnn_advance(const symrnn_stream *stream, int64_t steps, int64_t batch, const void *x,
                   void *between, void *output, int threads) {
    if (!stream || !stream->layer || !stream->h) return SYMRNN_NULL;
    if (stream->layers < 1) return SYMRNN_SIZE;
    if (stream->layers > 1 && batch > 0 && !between) return SYMRNN_NULL;
    int64_t state = 0;  // bytes of one layer's
    for (int n = 0; n < stream->layers; ++n) {
        const symrnn_layer &layer = stream->layer[n], &lowest = stream->layer[0];
        if (int bad = check_layer(&layer, false)) return bad;
        if (!layer.ih || (layer.mode == SYMRNN_LSTM && !stream->c)) return SYMRNN_NULL;
        if (layer.mode != lowest.mode) return SYMRNN_MODE;
        if (layer.hh->rows != lowest.hh->rows || (n > 0 && layer.ih->columns != layer.hh->rows))
            return SYMRNN_SIZE;
        if ((layer.hh->dtype == SYMRNN_DOUBLE) != (lowest.hh->dtype == SYMRNN_DOUBLE))
            return SYMRNN_DTYPE;
        state = batch * layer.hh->rows * (layer.hh->dtype == SYMRNN_DOUBLE ? 8 : 4);
    }
    for (int n = 0; n < stream->layers; ++n) {
        char *const h = static_cast<char *>(stream->h) + n * state;
        char *const c = stream->c ? static_cast<char *>(stream->c) + n * state : nullptr;
        // A layer has read all its input before it writes.
        void *const to = n == stream->layers - 1 ? output : between;
        if (int bad = symrnn_forward(&stream->layer[n], steps, batch, nullptr, 0,
                                     n == 0 ? x : between, nullptr, nullptr, h, c, to, h, c, threads))
            return bad;
    }
    return SYMRNN_OK;
}

int symrnn_backward(const symrnn_layer *layer, int64_t steps, int64_t batch, const int64_t *lengths,
                    int reverse, const void *gates, const void *saved_cells, const void *h0,
                    const void *c0, const void *output, const void *d_output, const void *d_hn,
                    const void *d_cn, void *d_gates, void *d_hidden, void *d_h0, void *d_c0,
                    int threads) {
    if (int bad = check_layer(layer, true)) return bad;
    if (int bad = check_steps(steps, batch, lengths)) return bad;
    if (too_many(steps, batch, layer->hh, nullptr)) return SYMRNN_SIZE;
    if (batch == 0) return SYMRNN_OK;
    const bool lstm = layer->mode == SYMRNN_LSTM, gru = layer->mode == SYMRNN_GRU;
    if (!gates || !output || !d_gates || !d_h0) return SYMRNN_NULL;
    if ((lstm || gru) && !saved_cells) return SYMRNN_NULL;
    if ((lstm && !d_c0) || (gru && !d_hidden)) return SYMRNN_NULL;
    const Call call{*layer, steps, batch, lengths, reverse != 0, threads};
    const auto run = layer->hh->dtype == SYMRNN_DOUBLE ? backward<double> : backward<float>;
    return run(call, {gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates, d_hidden, d_h0,
                      d_c0});
}

int symrnn_matmul(int dtype, int64_t m, int64_t n, int64_t k, const void *a, int a_transposed,
                  const void *b, int b_transposed, const void *bias, void *out, int threads) {
    if (m < 1 || n < 1 || k < 0) return SYMRNN_SIZE;
    if (m > MAX_ELEMENTS / n || k > MAX_ELEMENTS / (std::max(m, n) + SIDE)) return SYMRNN_SIZE;
    if (!out || (k > 0 && (!a || !b))) return SYMRNN_NULL;
    const DenseProduct of{m, n, k, a, a_transposed != 0, b, b_transposed != 0, bias, out};
    if (dtype == SYMRNN_FLOAT) return matmul<float>(of, threads);
    if (dtype == SYMRNN_DOUBLE) return matmul<double>(of, threads);
    return SYMRNN_DTYPE;
}

int symrnn_activate(int kind, int dtype, int64_t n, const void *x, void *y) {
    if (kind != 0 && kind != 1) return SYMRNN_MODE;
    if (n < 0) return SYMRNN_SIZE;
    if (n > 0 && (!x || !y)) return SYMRNN_NULL;
    if (dtype == SYMRNN_FLOAT)
        cpu().float32->activate(kind, n, static_cast<const float *>(x), static_cast<float *>(y));
    else if (dtype == SYMRNN_DOUBLE)
        cpu().float64->activate(kind, n, static_cast<const double *>(x), static_cast<double *>(y));
    else return SYMRNN_DTYPE;
    return SYMRNN_OK;
}

int symrnn_read(const void *from, int64_t bytes, int repeat, int threads, float *sum) {
    if (!sum || (bytes > 0 && !from)) return SYMRNN_NULL;
    if (bytes < 0 || repeat < 1) return SYMRNN_SIZE;
    Reading job{static_cast<const char *>(from), bytes, repeat, shares_for(threads), {}};
    const int status = run_job(job, job.shares);
    *sum = 0;
    for (int s = 0; s < job.shares; ++s) *sum += job.sums[s];
    return status;
}
