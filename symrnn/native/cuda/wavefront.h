// Two layers, one above the other, all their steps in one launch: the forward pass. rows_schedule.h says
// which block has which rows; all else that a block does is in rows.h.
//
// At tick n the first layer takes step n and the second step n - 1:
//
//     tick            0    1    2   …    T-1   T
//     first layer     0    1    2   …    T-1
//     second layer         0    1   …    T-2   T-1
//
// Both multiply what was computed at the tick before: h of step n - 1 of the first layer, which the second
// layer's input weights multiply too, and h of step n - 2 of the second. So a tick has one exchange, and
// the T + 1 ticks are the steps of a layer with three matrices. A flag counts the passes of both layers.
//
// The buffer is double, and safe as in rows.h: tick n reads one half of it and writes the other, which
// tick n - 1 read. A block writes at tick n after its warps have seen from all blocks what these wrote at
// tick n - 1; each of them did that after it had multiplied what tick n - 1 read, for the last time.
//
// The initial state of the second layer is what tick 1 reads, and is written to that half at the start:
// at tick 0 this layer computes and writes nothing. Its sums of that tick, of what was left in memory,
// nobody reads.
//
// Where there is a mask between the layers, or one of the first layer's state, the h of the first layer is
// written twice, as each matrix is multiplied by it. Without, once, and the tiles of both matrices are
// multiplied by the same loads of it.

#ifndef SYMRNN_CUDA_WAVEFRONT_H
#define SYMRNN_CUDA_WAVEFRONT_H

#include "rows.h"

namespace symrnn {

// The arguments of symrnn_cuda_forward_wavefront, as symrnn_cuda.h has them.
template <typename T>
struct WavefrontJob {
    RowSchedule schedule;
    RowJob<T> layer[2];  // flags and exchange are the same; of the second, `gates` is only written
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
        this->publish_initial_state(both_.layer[0], this->exchange(0), 0);
        this->publish_initial_state(both_.layer[1], this->exchange(1), 2);
        this->signal(1, passes_ - 1);
        for (int n = 0; n <= job_.steps; ++n)
            for (int pass = 0; pass < passes_; ++pass) tick(n, pass);
    }

  private:
    // gate: of all matrices, in the order of rows_schedule.h.
    SYMRNN_DEVICE Entries entries(int gate, int unit, int first) const {
        const int matrix = gate / s_.gates;
        gate -= matrix * s_.gates;
        if (matrix == 1)
            return {both_.w_ih + (static_cast<int64_t>(gate) * s_.units + unit) * s_.units + first, 1};
        return this->symmetric_entries(both_.layer[matrix / 2].packed, gate, unit, first);
    }

    SYMRNN_DEVICE void tick(int n, int pass) {
        this->each_cell(
            pass, n + 1, [&](Span of) { multiply(this->exchange(n % 2), of); },
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

    // Whether one h of the first layer serves both matrices.
    SYMRNN_DEVICE bool h_once() const { return !both_.between && !job_.state_mask; }

    // All matrices, each by its vector; the first two by the same where there is but one.
    SYMRNN_DEVICE void multiply(const Stored *operand, Span of) {
        const int tiles = s_.tiles(false);
#pragma unroll 1
        for (int matrix = 0; matrix < WAVEFRONT_MATRICES;) {
            const int next = matrix + (matrix == 0 && h_once() ? 2 : 1);
            this->template multiply_tiles<false>({matrix * tiles, next * tiles},
                                                 operand + matrix * s_.vector_elements(), of);
            matrix = next;
        }
        sync_block();
    }

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

    const WavefrontJob<T> &both_;
};

}  // namespace symrnn

#endif
