// What a thread does about a cell, one unit of one sequence, at a step: what it loads, the pointwise part,
// what it stores. A job is one of layer.h or rows.h. A cell has
//
//   unit, b  which one it is
//   at       its offset in (B, H)
//
// All arrays here are of one cell only: no other thread reads what is stored.

#ifndef SYMRNN_CUDA_CELLS_H
#define SYMRNN_CUDA_CELLS_H

#include "../symrnn.h"
#include "device.h"
#include "pointwise.h"

namespace symrnn {

constexpr int MAX_GATES = 4;

// An element of an array; 0 where there is none.
template <typename T>
SYMRNN_DEVICE float or_zero(const T *from, int64_t at) {
    return from ? to_float(from[at]) : 0.0f;
}

// An element of a mask; 1 where there is none.
template <typename T>
SYMRNN_DEVICE float or_one(const T *from, int64_t at) {
    return from ? to_float(from[at]) : 1.0f;
}

template <typename T>
SYMRNN_DEVICE void store(T *to, float x) {
    *to = from_float<T>(x);
}

// The first row, of all steps and sequences, of the n-th step of the forward pass.
template <typename Job>
SYMRNN_DEVICE int64_t row_of(const Job &job, int n) {
    return static_cast<int64_t>(job.reverse ? job.steps - 1 - n : n) * job.schedule.batch;
}

template <typename Job, typename Cell>
SYMRNN_DEVICE int64_t gate_offset(const Job &job, const Cell &c, int64_t row, int gate) {
    return ((row + c.b) * job.schedule.gates + gate) * job.schedule.units + c.unit;
}

template <typename Job, typename T, typename Cell>
SYMRNN_DEVICE void store_gates(const Job &job, T *to, const Cell &c, int64_t row,
                               const float (&gate)[MAX_GATES]) {
#pragma unroll
    for (int g = 0; g < MAX_GATES; ++g)
        if (g < job.schedule.gates) store(to + gate_offset(job, c, row, g), gate[g]);
}

// ---- forward -------------------------------------------------------------------------------------

struct ForwardInput {
    float gate[MAX_GATES];
    float before;  // LSTM c, GRU h
    float bias;    // GRU b_n
    float mask;    // of h after the step
};

struct ForwardResult {
    float gate[MAX_GATES];
    float h;
    float saved;  // LSTM c, GRU W_n h + b_n
};

// All but the gates.
template <typename Job, typename Cell>
SYMRNN_DEVICE ForwardInput read_state(const Job &job, const Cell &c, int n) {
    ForwardInput in = {};
    in.mask = or_one(job.state_mask, c.at);
    if (job.mode == SYMRNN_LSTM) in.before = n > 0 ? job.carry[c.at] : or_zero(job.c0, c.at);
    if (job.mode == SYMRNN_GRU) {
        in.before = n > 0 ? to_float(job.output[row_of(job, n - 1) * job.schedule.units + c.at])
                          : or_zero(job.h0, c.at);
        in.bias = or_zero(job.bias_n, c.unit);
    }
    return in;
}

template <typename Job, typename Cell>
SYMRNN_DEVICE ForwardInput read_forward(const Job &job, const Cell &c, int n) {
    ForwardInput in = read_state(job, c, n);
    const int64_t row = row_of(job, n);
#pragma unroll
    for (int g = 0; g < MAX_GATES; ++g)
        if (g < job.schedule.gates) in.gate[g] = to_float(job.gates[gate_offset(job, c, row, g)]);
    return in;
}

// hidden: of each gate, what its matrix gives.
template <typename Job>
SYMRNN_DEVICE ForwardResult step_forward(const Job &job, const ForwardInput &in,
                                         float (&hidden)[MAX_GATES]) {
    ForwardResult result = {};
    if (job.mode == SYMRNN_GRU) {
        result.saved = hidden[2] + in.bias;
        hidden[2] = 0;
    }
#pragma unroll
    for (int g = 0; g < MAX_GATES; ++g) result.gate[g] = in.gate[g] + hidden[g];
    if (job.mode == SYMRNN_LSTM) {
        result.saved = in.before;
        result.h = lstm_forward(result.gate, result.saved);
    } else if (job.mode == SYMRNN_GRU) {
        result.h = gru_forward(result.gate, result.saved, in.before);
    } else {
        const float x = result.gate[0];
        // Not fmaxf, which turns NaN into a number.
        result.h = job.mode == SYMRNN_RNN_TANH ? tanhf(x) : x < 0 ? 0.0f : x;
        result.gate[0] = result.h;
    }
    return result;
}

template <typename Job, typename Cell>
SYMRNN_DEVICE void store_forward(const Job &job, const Cell &c, int n, const ForwardResult &result) {
    const int64_t row = row_of(job, n), at = row * job.schedule.units + c.at;
    const bool last = n == job.steps - 1;
    store_gates(job, job.gates, c, row, result.gate);
    store(job.output + at, result.h);
    if (last) store(job.hn + c.at, result.h);
    if (job.mode == SYMRNN_LSTM) {
        job.carry[c.at] = result.saved;
        if (last) store(job.cn + c.at, result.saved);
    }
    if (job.saved_cells && (job.mode == SYMRNN_LSTM || job.mode == SYMRNN_GRU))
        job.saved_cells[at] = result.saved;
}

// ---- backward ------------------------------------------------------------------------------------

struct BackwardInput {
    float gate[MAX_GATES];
    float cell, before;  // LSTM c after and before, GRU W_n h + b_n and h before
    float d_h;           // of the output and, of a GRU, what bypassed the matrices
    float carried;       // LSTM: the gradient of c after the step
    float mask;          // of h after the step
};

struct BackwardResult {
    float gate[MAX_GATES];
    float d_hidden;  // GRU: the gradient of W_n h + b_n
    float carried;   // LSTM: the gradient of c before the step; GRU: of h, past the matrices
};

// n: the step, -1 for the initial state.  done: the steps of the backward pass that are behind.
template <typename Job, typename Cell>
SYMRNN_DEVICE BackwardInput read_backward(const Job &job, const Cell &c, int n, int done) {
    BackwardInput in = {};
    const bool lstm = job.mode == SYMRNN_LSTM, gru = job.mode == SYMRNN_GRU;
    in.mask = or_one(job.state_mask, c.at);
    if (lstm) in.carried = done > 0 ? job.carry[c.at] : or_zero(job.d_cn, c.at);
    if (gru && done > 0) in.d_h = job.carry[c.at];
    if (n < 0) return in;
    const int64_t row = row_of(job, n), at = row * job.schedule.units + c.at,
                  at_before = n > 0 ? row_of(job, n - 1) * job.schedule.units + c.at : c.at;
#pragma unroll
    for (int g = 0; g < MAX_GATES; ++g)
        if (g < job.schedule.gates) in.gate[g] = to_float(job.gates[gate_offset(job, c, row, g)]);
    in.d_h += or_zero(job.d_output, at);
    if (done == 0) in.d_h += or_zero(job.d_hn, c.at);
    if (lstm) in.before = n > 0 ? job.saved_cells[at_before] : or_zero(job.c0, c.at);
    if (gru) in.before = or_zero(n > 0 ? job.output : job.h0, at_before);
    if (lstm || gru) in.cell = job.saved_cells[at];
    return in;
}

// d_h: the whole gradient of h after the step.  n: as above.
template <typename Job>
SYMRNN_DEVICE BackwardResult step_backward(const Job &job, int n, const BackwardInput &in, float d_h) {
    // Of the initial state: its gradient in the place of a gate's.
    if (n < 0) return {{d_h}, 0, in.carried};
    BackwardResult result = {};
#pragma unroll
    for (int g = 0; g < MAX_GATES; ++g) result.gate[g] = in.gate[g];
    if (job.mode == SYMRNN_LSTM) {
        result.carried = in.carried;
        lstm_backward(result.gate, in.before, in.cell, d_h, result.carried);
    } else if (job.mode == SYMRNN_GRU) {
        gru_backward(result.gate, in.cell, in.before, d_h, result.d_hidden);
        result.carried = d_h;
    } else {
        const float h = in.gate[0];
        result.gate[0] = job.mode == SYMRNN_RNN_TANH ? d_h * (1 - h * h) : h > 0 ? d_h : 0.0f;
    }
    return result;
}

// Of a gate, the gradient of what its matrix gave.
template <typename Job>
SYMRNN_DEVICE float gradient_of_product(const Job &job, const BackwardResult &result, int gate) {
    return job.mode == SYMRNN_GRU && gate == 2 ? result.d_hidden : result.gate[gate];
}

template <typename Job, typename Cell>
SYMRNN_DEVICE void store_backward(const Job &job, const Cell &c, int n, const BackwardResult &result) {
    const bool lstm = job.mode == SYMRNN_LSTM, gru = job.mode == SYMRNN_GRU;
    if (n < 0) {
        store(job.d_h0 + c.at, result.gate[0]);
        if (lstm) store(job.d_c0 + c.at, result.carried);
        return;
    }
    const int64_t row = row_of(job, n);
    store_gates(job, job.d_gates, c, row, result.gate);
    if (lstm || gru) job.carry[c.at] = result.carried;
    if (gru) {
        store_gates(job, job.d_hidden, c, row, result.gate);
        store(job.d_hidden + gate_offset(job, c, row, 2), result.d_hidden);
    }
}

}  // namespace symrnn

#endif
