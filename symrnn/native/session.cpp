// Sessions: what a batch of sequences goes through from the tokens or vectors to the outputs.

#include <string.h>

#include <algorithm>
#include <new>

#include "failure.h"
#include "jobs.h"
#include "model.h"

using namespace symrnn;

namespace {

// Memory that grows and is cached from call to call.
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    ~Buffer() { free(at_); }

    float *at() const { return at_; }

    // So many floats, with any contents; null if there is no memory.
    float *get(int64_t count) {
        if (count > count_) {
            free(at_);
            count_ = 0;
            at_ = static_cast<float *>(malloc(count * sizeof(float)));
            if (at_) count_ = count;
        }
        return at_;
    }

  private:
    float *at_ = nullptr;
    int64_t count_ = 0;
};

}  // namespace

struct symrnn_session {
    const symrnn_model *model;
    int64_t batch;
    int threads;
    Buffer h, c;
    Buffer x, between, output;  // of some steps

    int64_t state_size() const { return model->about.layers * batch * model->about.hidden_size; }
};

namespace symrnn {
namespace {

// Steps times sequences in one call of the kernels, which hold all steps' gates.
constexpr int64_t MAX_ROWS = 2048;
// Packed entries times sequences from which on more than one thread pays, and the sequences of each
// from which on it runs its own. Both measured for symrnn/rnn/fused/inference.py.
constexpr int64_t WORTH_THREADS = 1 << 16, OWN_SEQUENCES = 5;

int threads_for(int threads, int64_t entries, int64_t steps, int64_t batch) {
    const int64_t sequences = batch < OWN_SEQUENCES * threads ? batch : batch * steps;
    return entries * sequences < WORTH_THREADS ? 1 : threads;
}

// ---- the embedding and the linear end -----------------------------------------------------------

// Row `row` of a matrix that is one full term, as float.
void unpack_row(const symrnn_product &w, int64_t row, float *to) {
    const symrnn_term &t = *w.term;
    const int64_t tiles = tiles_of(t.columns), panel = row / SIDE, r = row % SIDE;
    const char *const packed = static_cast<const char *>(t.packed);
    const int64_t at = panel_start(0, tiles, 1, panel);
    if (w.dtype == SYMRNN_INT8) {
        const Int8Matrices of(t.packed, 0, t.rows, t.columns, 1);
        for (int64_t k = 0; k < t.columns; ++k) {
            const int64_t tile = at + k / SIDE * TILE, column = k % SIDE;
            to[k] = of.tiles[tile + column / 4 * 64 + r * 4 + column % 4] * of.scale[row];
        }
    } else if (w.dtype == SYMRNN_BFLOAT16) {
        // Two columns share a word for each row, the first in its lower half.
        const auto *const words = reinterpret_cast<const uint32_t *>(packed) + at / 2;
        for (int64_t k = 0; k < t.columns; ++k) {
            const uint32_t word = words[k / 2 * SIDE + r];
            const uint32_t bits = k % 2 ? word & 0xffff0000u : word << 16;
            memcpy(to + k, &bits, sizeof bits);
        }
    } else {
        const auto *const numbers = reinterpret_cast<const float *>(packed) + at;
        for (int64_t k = 0; k < t.columns; ++k) to[k] = numbers[k * SIDE + r];
    }
}

struct LinearJob {
    const Linear &linear;
    int64_t batch;
    const float *x;
    float *y;
    int shares;
    Product<float> product;

    float *blocked_x = nullptr, *blocked_y = nullptr;

    int64_t rows() const { return linear.weight->rows; }
    int64_t columns() const { return linear.weight->columns; }

    bool prepare() {
        Arena arena;
        arena.reserve(blocked_x, product.x_gate());
        arena.reserve(blocked_y, tiles_of(rows()) * batch * SIDE);
        product.reserve(arena);
        return arena.allocate();
    }

    void run(Team &team) {
        const int64_t stride = batch * SIDE, tiles = tiles_of(rows());
        to_blocks(x, batch, columns(), stride, 0, tiles_of(columns()), blocked_x);
        product.run(team, blocked_x, batch);
        const PartialSums sums = product.partial_sums(0);
        team.each(shares, [&](int share) {
            const int64_t first = tiles * share / shares, last = tiles * (share + 1) / shares;
            for (int64_t tile = first; tile < last; ++tile)
                for (int64_t b = 0; b < batch; ++b) {
                    float *const to = blocked_y + tile * stride + b * SIDE;
                    if (linear.bias) memcpy(to, linear.bias + tile * SIDE, SIDE * sizeof *to);
                    else memset(to, 0, SIDE * sizeof *to);
                }
            kernels<float>().add(blocked_y, sums, first, last, stride);
            for (int64_t tile = first; tile < last; ++tile) {
                const int64_t count = std::min(SIDE, rows() - tile * SIDE);
                for (int64_t b = 0; b < batch; ++b)
                    memcpy(y + b * rows() + tile * SIDE, blocked_y + tile * stride + b * SIDE,
                           count * sizeof *y);
            }
        });
    }
};

// y (n, rows) = x (n, columns) · Wᵀ + bias, n ≥ 1. Returns a status.
int run_linear(const Linear &linear, int64_t n, const float *x, float *y, int threads) {
    const symrnn_product &w = *linear.weight;
    const int64_t entries = int64_t(w.rows) * w.columns / (w.dtype == SYMRNN_INT8 ? 8 : 1);
    const Passes passes(n);
    for (int64_t k = 0; k < passes.count; ++k) {
        const int64_t first = passes.first(k), batch = passes.first(k + 1) - first;
        const int shares = shares_for(threads_for(threads, entries, 1, batch));
        LinearJob job{linear, batch, x + first * w.columns, y + first * w.rows, shares,
                      Product<float>(w, false, batch, shares)};
        if (const int bad = run_job(job, shares)) return bad;
    }
    return SYMRNN_OK;
}

// ---- steps -------------------------------------------------------------------------------------

// Some steps, of tokens or of vectors: one of the two is null.
int run_some(symrnn_session &session, int64_t steps, const int32_t *tokens, const float *x,
             int64_t wanted, float *to) {
    const symrnn_model &model = *session.model;
    const symrnn_about &about = model.about;
    const int64_t batch = session.batch, rows = steps * batch, hidden = about.hidden_size;
    const bool direct = !model.linear.weight && wanted == steps;
    float *const output = direct ? to : session.output.get(rows * hidden);
    float *const between = about.layers > 1 ? session.between.get(rows * hidden) : nullptr;
    if (!output || (about.layers > 1 && !between)) return SYMRNN_MEMORY;
    if (tokens) {
        float *const rows_of = session.x.get(rows * about.input_size);
        if (!rows_of) return SYMRNN_MEMORY;
        for (int64_t k = 0; k < rows; ++k)
            unpack_row(*model.embedding, tokens[k], rows_of + k * about.input_size);
        x = rows_of;
    }
    const symrnn_stream stream = {about.layers, model.layers, session.h.at(), session.c.at()};
    const int threads = threads_for(session.threads, model.entries, steps, batch);
    if (const int bad = symrnn_advance(&stream, steps, batch, x, between, output, threads))
        return bad;
    const float *const last = output + (steps - wanted) * batch * hidden;
    if (model.linear.weight)
        return wanted ? run_linear(model.linear, wanted * batch, last, to, session.threads)
                      : int(SYMRNN_OK);
    if (!direct && wanted) memcpy(to, last, wanted * batch * hidden * sizeof *to);
    return SYMRNN_OK;
}

int run(symrnn_session &session, int64_t steps, const int32_t *tokens, const float *x,
        int64_t wanted, float *output) {
    const symrnn_about &about = session.model->about;
    const int64_t batch = session.batch, at_once = std::max(int64_t(1), MAX_ROWS / batch);
    for (int64_t first = 0; first < steps; first += at_once) {
        const int64_t count = std::min(at_once, steps - first);
        const int64_t own = std::clamp(wanted - (steps - first - count), int64_t(0), count);
        if (const int bad =
                run_some(session, count, tokens ? tokens + first * batch : nullptr,
                         x ? x + first * batch * about.input_size : nullptr, own, output))
            return fail(bad, "%s", symrnn_message(bad));
        output += own * batch * about.output_size;
    }
    return SYMRNN_OK;
}

int check_run(const symrnn_session *session, int64_t steps, const void *inputs, bool tokens,
              int64_t wanted, const float *output) {
    if (!session || !inputs || (wanted && !output))
        return fail(SYMRNN_NULL, "session, inputs and output should not be null");
    const symrnn_about &about = session->model->about;
    if (tokens != (about.tokens > 0))
        return fail(SYMRNN_MODE, "this model takes %s", tokens ? "vectors" : "tokens");
    const int64_t most =
        (int64_t(1) << 40) / (std::max(about.output_size, about.input_size) + SIDE);
    if (steps < 1 || steps > most / session->batch)
        return fail(SYMRNN_SIZE,
                    "steps should be at least 1 and less than any memory holds, got: %lld",
                    static_cast<long long>(steps));
    if (wanted < 0 || wanted > steps)
        return fail(SYMRNN_SIZE, "wanted should be from 0 to the %lld steps, got: %lld",
                    static_cast<long long>(steps), static_cast<long long>(wanted));
    return SYMRNN_OK;
}

int new_session(const symrnn_model *model, int64_t batch, int threads, symrnn_session **session) {
    auto *const made = new (std::nothrow) symrnn_session;
    if (!made) return fail(SYMRNN_MEMORY, "out of memory");
    made->model = model;
    made->batch = batch;
    made->threads = threads;
    const int64_t size = made->state_size();
    if (!made->h.get(size) || (model->about.mode == SYMRNN_LSTM && !made->c.get(size))) {
        delete made;
        return fail(SYMRNN_MEMORY, "out of memory");
    }
    *session = made;
    return SYMRNN_OK;
}

}  // namespace
}  // namespace symrnn

int symrnn_session_open(const symrnn_model *model, int64_t batch, int threads,
                        symrnn_session **session) {
    if (session) *session = nullptr;
    if (!model || !session) return fail(SYMRNN_NULL, "model and session should not be null");
    const int64_t width = std::max(model->about.hidden_size, model->about.input_size) + SIDE;
    if (batch < 1 || batch > (int64_t(1) << 40) / (width * model->about.layers))
        return fail(SYMRNN_SIZE,
                    "batch should be at least 1 and less than any memory holds, got: %lld",
                    static_cast<long long>(batch));
    if (threads < 1) return fail(SYMRNN_SIZE, "threads should be at least 1, got: %d", threads);
    if (const int bad = new_session(model, batch, shares_for(threads), session)) return bad;
    return symrnn_session_reset(*session, -1);
}

int symrnn_session_copy(const symrnn_session *session, symrnn_session **copy) {
    if (copy) *copy = nullptr;
    if (!session || !copy) return fail(SYMRNN_NULL, "session and copy should not be null");
    if (const int bad = new_session(session->model, session->batch, session->threads, copy))
        return bad;
    return symrnn_session_set_state(*copy, session->h.at(), session->c.at());
}

void symrnn_session_close(symrnn_session *session) { delete session; }

int symrnn_session_reset(symrnn_session *session, int64_t row) {
    if (!session) return fail(SYMRNN_NULL, "session should not be null");
    const int64_t batch = session->batch, hidden = session->model->about.hidden_size;
    if (row < -1 || row >= batch)
        return fail(SYMRNN_SIZE, "row should be -1 or from 0 to %lld, got: %lld",
                    static_cast<long long>(batch - 1), static_cast<long long>(row));
    const int64_t first = row < 0 ? 0 : row, count = row < 0 ? batch : 1;
    for (float *part : {session->h.at(), session->c.at()})
        for (int64_t n = 0; part && n < session->model->about.layers; ++n)
            memset(part + (n * batch + first) * hidden, 0, count * hidden * sizeof *part);
    return SYMRNN_OK;
}

int symrnn_session_state(const symrnn_session *session, float *h, float *c) {
    if (!session || !h) return fail(SYMRNN_NULL, "session and h should not be null");
    const bool lstm = session->model->about.mode == SYMRNN_LSTM;
    if (lstm && !c) return fail(SYMRNN_NULL, "c of an LSTM should not be null");
    memcpy(h, session->h.at(), session->state_size() * sizeof *h);
    if (lstm) memcpy(c, session->c.at(), session->state_size() * sizeof *c);
    return SYMRNN_OK;
}

int symrnn_session_set_state(symrnn_session *session, const float *h, const float *c) {
    if (!session || !h) return fail(SYMRNN_NULL, "session and h should not be null");
    const bool lstm = session->model->about.mode == SYMRNN_LSTM;
    if (lstm && !c) return fail(SYMRNN_NULL, "c of an LSTM should not be null");
    memcpy(session->h.at(), h, session->state_size() * sizeof *h);
    if (lstm) memcpy(session->c.at(), c, session->state_size() * sizeof *c);
    return SYMRNN_OK;
}

int symrnn_run_tokens(symrnn_session *session, int64_t steps, const int32_t *tokens, int64_t wanted,
                      float *output) {
    if (const int bad = check_run(session, steps, tokens, true, wanted, output)) return bad;
    const int32_t known = session->model->about.tokens;
    for (int64_t k = 0; k < steps * session->batch; ++k)
        if (tokens[k] < 0 || tokens[k] >= known)
            return fail(SYMRNN_TOKEN, "tokens should be from 0 to %d, got: %d", known - 1,
                        tokens[k]);
    return run(*session, steps, tokens, nullptr, wanted, output);
}

int symrnn_run_vectors(symrnn_session *session, int64_t steps, const float *x, int64_t wanted,
                       float *output) {
    if (const int bad = check_run(session, steps, x, false, wanted, output)) return bad;
    return run(*session, steps, nullptr, x, wanted, output);
}
