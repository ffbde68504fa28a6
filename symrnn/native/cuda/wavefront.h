// Two layers, one above the other, all their steps in one launch. rows_schedule.h says which block has
// which rows; all else that a block does is in rows.h.
//
// Forward, at tick n the first layer takes step n and the second step n - 1. Backward it is the other way
// round: the second layer begins at the last step, and the first is a step behind it:
//
//     forward, tick   0    1    2   …    T-1   T          backward    0    1    2   …    T     T+1
//     first layer     0    1    2   …    T-1                               T-1  T-2 …    0     h0
//     second layer         0    1   …    T-2   T-1                    T-1  T-2  T-3 …    h0
//
// Both multiply what was computed at the tick before. Forward that is h of step n - 1 of the first layer,
// which the second layer's input weights multiply too, and h of step n - 2 of the second. Backward it is
// the gradients of the second layer's gates, which its input weights' transposes multiply too, for the
// first layer's step; and those of the first layer's gates of the step after. So a tick has one exchange,
// and the ticks are the steps of a layer with three matrices. A flag counts the passes of both layers.
//
// The buffer is double, and safe as in rows.h: a tick reads one half of it and writes the other, which
// the tick before read. A block writes after its warps have seen from all blocks what these wrote at the
// tick before; each of them did that after it had multiplied what that tick read, for the last time.
//
// Forward, the initial state of the second layer is what tick 1 reads, and is written to that half at the
// start: at tick 0 this layer computes and writes nothing. Where a layer has no step, nobody reads its
// sums, which may be of what was left in memory.
//
// Where there is a mask between the layers, or one of the first layer's state, the h of the first layer is
// written twice, as each matrix is multiplied by it. Without, once, and the tiles of both matrices are
// multiplied by the same loads of it. In the backward pass the last two matrices are multiplied as one; those
// of a GRU by all gradients of the second layer's gates but one each: of n_input, r, z, n_hidden the input
// weights by the first three, the hidden weights by the last three.

#ifndef SYMRNN_CUDA_WAVEFRONT_H
#define SYMRNN_CUDA_WAVEFRONT_H

#include "rows.h"

namespace symrnn {

// The arguments of symrnn_cuda_forward_wavefront and symrnn_cuda_backward_wavefront, as symrnn_cuda.h has
// them.
template <typename T>
struct WavefrontJob {
    RowSchedule schedule;
    RowJob<T> layer[2];  // flags and exchange are the same; forward, the second's `gates` is only written
    const T *w_ih, *bias, *between;
};

// One thread block. N: the sequences that are multiplied at once, in eights.
template <typename Policy, int N>
class WavefrontWorker : RowWorker<Policy, N, WAVEFRONT_MATRICES> {
    using Base = RowWorker<Policy, N, WAVEFRONT_MATRICES>;
    using typename Base::Cell, typename Base::Entries, typename Base::Stored, typename Base::T;
    using Base::job_, Base::s_, Base::passes_;

  public:
    SYMRNN_DEVICE WavefrontWorker(const WavefrontJob<T> &job, char *shared)
        : Base(job.layer[0], shared), both_(job) {}

    SYMRNN_DEVICE void run() {
        this->load_shard([&](int gate, int unit, int first) { return entries(gate, unit, first); });
        this->clear_padding();
        if (job_.backward) backward();
        else forward();
    }

  private:
    // ---- the matrices ----------------------------------------------------------------------------

    // gate: of all matrices, in the order of rows_schedule.h.
    SYMRNN_DEVICE Entries entries(int gate, int unit, int first) const {
        int matrix = gate / s_.gates;
        gate -= matrix * s_.gates;
        if (matrix > 0 && this->paired()) {
            gate += (matrix - 1) * s_.gates;
            matrix = 1 + gate % 2;
            gate /= 2;
        }
        if (matrix == 1) {
            // In the order in which the gradients are exchanged.
            if (job_.backward && is_gru()) gate = gate == 0 ? 2 : gate - 1;
            const T *const of_gate = both_.w_ih + static_cast<int64_t>(gate) * s_.units * s_.units;
            if (job_.backward) return {of_gate + static_cast<int64_t>(first) * s_.units + unit, s_.units};
            return {of_gate + static_cast<int64_t>(unit) * s_.units + first, 1};
        }
        return this->symmetric_entries(both_.layer[matrix / 2].packed, gate, unit, first);
    }

    SYMRNN_DEVICE bool is_gru() const { return job_.mode == SYMRNN_GRU; }

    // The first of two matrices that are multiplied by the same; -1 if there are none.
    SYMRNN_DEVICE int pair() const {
        if (job_.backward) return this->paired() ? 1 : -1;
        return h_once() ? 0 : -1;
    }

    // Whether one h of the first layer serves both matrices.
    SYMRNN_DEVICE bool h_once() const { return !both_.between && !job_.state_mask; }

    // What a matrix is multiplied by, forward one vector, backward one for each gate.
    SYMRNN_DEVICE int first_vector(int matrix) const {
        if (!job_.backward || matrix == 0) return matrix;
        return s_.gates + (matrix == 2 && is_gru());
    }

    // All matrices.
    template <bool BACKWARD>
    SYMRNN_DEVICE void multiply(const Stored *operand, Span of) {
        const int tiles = s_.tiles(BACKWARD), both = pair();
#pragma unroll 1
        for (int matrix = 0; matrix < WAVEFRONT_MATRICES;) {
            const int next = matrix + (matrix == both ? 2 : 1);
            const int last = next < WAVEFRONT_MATRICES ? next * tiles : s_.all_tiles(BACKWARD);
            this->template multiply_tiles<BACKWARD>(
                {matrix * tiles, last}, operand + first_vector(matrix) * s_.vector_elements(), of);
            matrix = next;
        }
        sync_block();
    }

    // ---- forward ---------------------------------------------------------------------------------

    SYMRNN_DEVICE void forward() {
        this->publish_initial_state(both_.layer[0], this->exchange(0), 0);
        this->publish_initial_state(both_.layer[1], this->exchange(1), 2);
        this->signal(1, passes_ - 1);
        for (int n = 0; n <= job_.steps; ++n)
            for (int pass = 0; pass < passes_; ++pass) forward(n, pass);
    }

    // At tick n.
    SYMRNN_DEVICE void forward(int n, int pass) {
        this->each_cell(
            pass, n + 1, [&](Span of) { multiply<false>(this->exchange(n % 2), of); },
            [&](const Cell &c) { return read(c, n - c.layer); },
            [&](const Cell &c, const Input &in) {
                if (!is_step(n - c.layer)) return ForwardResult{};
                return step(c, in, this->exchange((n + 1) % 2));
            },
            [&](const Cell &c, const ForwardResult &result) {
                if (is_step(n - c.layer))
                    store_forward(both_.layer[c.layer], c, n - c.layer, result);
            });
    }

    SYMRNN_DEVICE bool is_step(int n) const { return n >= 0 && n < job_.steps; }

    struct Input {
        ForwardInput cell;  // of the second layer the gates are the bias
        float between;
    };

    // n: the step of this layer, which may be none.
    SYMRNN_DEVICE Input read(const Cell &c, int n) const {
        if (!is_step(n)) return {};
        const RowJob<T> &layer = both_.layer[c.layer];
        const int64_t row = row_of(job_, n);
        Input in = {read_state(layer, c, n), 1.0f};
        const T *const from = c.layer ? both_.bias : layer.gates;
#pragma unroll
        for (int g = 0; g < MAX_GATES; ++g)
            if (g < s_.gates)
                in.cell.gate[g] = or_zero(from, c.layer ? g * s_.units + c.unit
                                                        : gate_offset(job_, c, row, g));
        if (c.layer == 0) in.between = or_one(both_.between, row * s_.units + c.at);
        return in;
    }

    SYMRNN_DEVICE ForwardResult step(const Cell &c, Input in, Stored *next) const {
        if (c.layer == 1) this->add_sums(c, this->sums_of(1), in.cell.gate);
        float hidden[MAX_GATES] = {};
        this->add_sums(c, this->sums_of(2 * c.layer), hidden);
        const ForwardResult result = step_forward(job_, in.cell, hidden);
        this->publish(next, 2 * c.layer, c, result.h * in.cell.mask);
        if (c.layer == 0 && !h_once()) this->publish(next, 1, c, result.h * in.between);
        return result;
    }

    // ---- backward --------------------------------------------------------------------------------

    SYMRNN_DEVICE void backward() {
        for (int ticks = 0; ticks <= job_.steps + 1; ++ticks)
            for (int pass = 0; pass < passes_; ++pass) backward(ticks, pass);
    }

    // ticks: that are behind. So many steps of the second layer are, and of the first one less.
    SYMRNN_DEVICE void backward(int ticks, int pass) {
        this->each_cell(
            pass, ticks, [&](Span of) { multiply<true>(this->exchange((ticks + 1) % 2), of); },
            [&](const Cell &c) { return read_gradients(c, ticks + c.layer - 1); },
            [&](const Cell &c, const GradientInput &in) {
                return step_gradients(c, in, ticks + c.layer - 1, this->exchange(ticks % 2));
            },
            [&](const Cell &c, const BackwardResult &result) {
                const int done = ticks + c.layer - 1;
                if (has_step(done))
                    store_backward(both_.layer[c.layer], c, job_.steps - 1 - done, result);
            });
    }

    // The initial state's among them. done: the steps of this layer that are behind.
    SYMRNN_DEVICE bool has_step(int done) const { return done >= 0 && done <= job_.steps; }

    struct GradientInput {
        BackwardInput cell;
        float between;
    };

    SYMRNN_DEVICE GradientInput read_gradients(const Cell &c, int done) const {
        if (!has_step(done)) return {};
        const int n = job_.steps - 1 - done;
        GradientInput in = {read_backward(both_.layer[c.layer], c, n, done), 1.0f};
        if (c.layer == 0 && n >= 0)
            in.between = or_one(both_.between, row_of(job_, n) * s_.units + c.at);
        return in;
    }

    SYMRNN_DEVICE BackwardResult step_gradients(const Cell &c, const GradientInput &in, int done,
                                                Stored *next) const {
        if (!has_step(done)) return {};
        const int n = job_.steps - 1 - done;
        float d_h = in.cell.d_h;
        if (done > 0) d_h += in.cell.mask * this->sum(this->sums_of(2 * c.layer) + c.own, c.column);
        if (c.layer == 0 && n >= 0) d_h += in.between * this->sum(this->sums_of(1) + c.own, c.column);
        const BackwardResult result = step_backward(job_, n, in.cell, d_h);
        // Of the initial state too, which nobody uses.
#pragma unroll
        for (int g = 0; g < MAX_GATES; ++g)
            if (g < s_.gates)
                this->publish(next, first_vector(2 * c.layer) + g, c, gradient_of_product(job_, result, g));
        if (c.layer == 1 && is_gru()) this->publish(next, first_vector(1), c, result.gate[2]);
        return result;
    }

    const WavefrontJob<T> &both_;
};

}  // namespace symrnn

#endif
