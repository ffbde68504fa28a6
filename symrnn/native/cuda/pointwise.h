// The pointwise part of a step for one unit of one sequence, forward and backward, in float.

#ifndef SYMRNN_CUDA_POINTWISE_H
#define SYMRNN_CUDA_POINTWISE_H

#include <math.h>

#include "device.h"

namespace symrnn {

SYMRNN_DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// LSTM, gates i f g o. gate: pre-activations, on return activations. Returns h.
SYMRNN_DEVICE float lstm_forward(float (&gate)[4], float &c) {
    const float i = sigmoid(gate[0]), f = sigmoid(gate[1]), g = tanhf(gate[2]),
                o = sigmoid(gate[3]);
    c = f * c + i * g;
    gate[0] = i, gate[1] = f, gate[2] = g, gate[3] = o;
    return o * tanhf(c);
}

// gate: activations, on return the gradients of the pre-activations.  d_c: the gradient of c after the
// step, on return of c before it.
SYMRNN_DEVICE void lstm_backward(float (&gate)[4], float c_before, float c, float d_h, float &d_c) {
    const float i = gate[0], f = gate[1], g = gate[2], o = gate[3], out = tanhf(c);
    d_c += d_h * o * (1 - out * out);
    gate[0] = d_c * g * i * (1 - i);
    gate[1] = d_c * c_before * f * (1 - f);
    gate[2] = d_c * i * (1 - g * g);
    gate[3] = d_h * out * o * (1 - o);
    d_c *= f;
}

// GRU, gates r z n. gate: pre-activations, of n without `hidden` = W_n h + b_n; on return activations.
// Returns h.
SYMRNN_DEVICE float gru_forward(float (&gate)[4], float hidden, float h_before) {
    const float r = sigmoid(gate[0]), z = sigmoid(gate[1]), n = tanhf(gate[2] + r * hidden);
    gate[0] = r, gate[1] = z, gate[2] = n;
    return n + z * (h_before - n);
}

// gate: activations, on return the gradients of the pre-activations' input part.  d_hidden: on return
// the gradient of `hidden`.  d_h: the gradient of h after the step, on return the part of it that
// bypasses the matrices.
SYMRNN_DEVICE void gru_backward(float (&gate)[4], float hidden, float h_before, float &d_h,
                                float &d_hidden) {
    const float r = gate[0], z = gate[1], n = gate[2];
    const float d_n = d_h * (1 - z) * (1 - n * n);
    gate[0] = d_n * hidden * r * (1 - r);
    gate[1] = d_h * (h_before - n) * z * (1 - z);
    gate[2] = d_n;
    d_hidden = d_n * r;
    d_h *= z;
}

}  // namespace symrnn

#endif
