// Products of a tile A (16 × 16) and an operand B (16 units of 8 sequences) by one warp: a policy for
// each kind of arithmetic. A policy has
//
//   Number         the type of the arrays and of the packed weights
//   Stored         the type in shared memory
//   load_tile      copies a packed tile to shared memory, in a layout in which reads along its rows and
//                  across them are free of bank conflicts
//   operand_index  where unit r of sequence b of an operand tile is stored: operand_unit(b, r) among the 16
//                  elements of the sequence. It is the same for b + 8
//   FragmentA      a thread's fragment of A, the tile or its transpose, for one of STEPS equal steps of
//                  the sum
//   FragmentB      a thread's fragment of B
//   multiply       sum += A · B
//   STRIPS         how many tiles A a warp multiplies at once, at most; one more spills registers
//   store          writes two of a lane's four sums. They are of two rows of the tile and of the
//                  sequences 2 · (lane % 4) and the next; those of the k-th of these two are written
//
// A tile is stored column by column, so in memory M[c][r] = W[r][c]: W is read across the rows of M
// and Wᵀ along them. The terms of a sum may come in any order, if it is the same for A and B; the loads
// below use the order that makes them wide.

#ifndef SYMRNN_CUDA_PRODUCTS_H
#define SYMRNN_CUDA_PRODUCTS_H

#include "../layout.h"
#include "device.h"

namespace symrnn {

// The layout of float tiles and operands in shared memory; both policies for float share it.
struct FloatLayout {
    using Number = float;
    using Stored = float;

    // The index of M[row][column]. Two rows are a line of all 32 banks. The eight quads of a line are
    // permuted (XOR swizzle), differently from line to line: neither the quads of eight lines nor the
    // pairs of one column of quads conflict in a bank.
    static constexpr int index(int row, int column) {
        const int line = row >> 1;
        const int moved = ((line >> 1) ^ ((line & 1) << 1)) << 1;
        return line * 32 + ((((row & 1) << 2) + (column >> 2)) ^ moved) * 4 + (column & 3);
    }

    static constexpr int operand_unit(int b, int r) {
        return ((r >> 2) ^ ((b >> 1) & 3)) * 4 + (r & 3);
    }
    static constexpr int operand_index(int b, int r) { return b * 16 + operand_unit(b, r); }

    SYMRNN_DEVICE static void store(float *to, const float (&sum)[4], int k) {
        *reinterpret_cast<Pair *>(to + lane_index() / 4 * 2) = {{sum[k], sum[2 + k]}};
    }

    template <typename Rounding>
    SYMRNN_DEVICE static void load_tile(float *tile, const float *packed, const Rounding &rounded) {
        for (int k = lane_index(); k < TILE / 4; k += WARP) {
            Quad<float> quad = load_quad(packed + k * 4);
            for (float &x : quad.at) x = rounded(x);
            *reinterpret_cast<Quad<float> *>(tile + index(k / 4, k % 4 * 4)) = quad;
        }
    }
};

// Exact products of floats, accumulated in float.
struct Exact : FloatLayout {
    static constexpr int STEPS = 4;  // of 4 terms each
    static constexpr int STRIPS = 2;

    struct FragmentA {
        float at[2][4];  // two rows of A, 4 terms
    };
    struct FragmentB {
        float at[2][4];  // two sequences, 4 terms
    };

    SYMRNN_DEVICE static float rounded(float x) { return x; }
    SYMRNN_DEVICE static void load_tile(float *tile, const float *packed) {
        FloatLayout::load_tile(tile, packed, [](float x) { return x; });
    }

    SYMRNN_DEVICE static FragmentA load_a(const float *tile, bool transposed, int step) {
        const int two = lane_index() / 4 * 2;
        FragmentA a;
        if (transposed) {
            for (int i = 0; i < 2; ++i) {
                const Quad<float> q = load_quad(tile + index(two + i, step * 4));
                for (int k = 0; k < 4; ++k) a.at[i][k] = q.at[k];
            }
        } else {
            for (int k = 0; k < 4; ++k) {
                const Pair p = load_pair(tile + index(step * 4 + k, two));
                for (int i = 0; i < 2; ++i) a.at[i][k] = p.at[i];
            }
        }
        return a;
    }

    SYMRNN_DEVICE static FragmentB load_b(const float *operand, int first, int step) {
        const int two = first + lane_index() % 4 * 2;
        FragmentB b;
        for (int j = 0; j < 2; ++j) {
            const Quad<float> q = load_quad(operand + operand_index(two + j, step * 4));
            for (int k = 0; k < 4; ++k) b.at[j][k] = q.at[k];
        }
        return b;
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const FragmentA &a, const FragmentB &b) {
        for (int k = 0; k < 4; ++k)
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j) sum[i * 2 + j] += a.at[i][k] * b.at[j][k];
    }
};

// Products of floats rounded to TF32, on tensor cores, accumulated in float.
struct Tf32 : FloatLayout {
    static constexpr int STEPS = 1;
    static constexpr int STRIPS = 3;

    struct FragmentA {
        float at[2][4];  // of two mma instructions
    };
    struct FragmentB {
        float at[2][2];
    };

    SYMRNN_DEVICE static float rounded(float x) { return round_to_tf32(x); }
    SYMRNN_DEVICE static void load_tile(float *tile, const float *packed) {
        FloatLayout::load_tile(tile, packed, [](float x) { return round_to_tf32(x); });
    }

    // Lane (g, t) has the terms 4t … 4t+3: two for each mma.
    SYMRNN_DEVICE static FragmentA load_a(const float *tile, bool transposed, int) {
        const int two = lane_index() / 4 * 2, four = lane_index() % 4 * 4;
        FragmentA a;
        if (transposed) {
            for (int i = 0; i < 2; ++i) {
                const Quad<float> q = load_quad(tile + index(two + i, four));
                for (int k = 0; k < 4; ++k) a.at[k / 2][k % 2 * 2 + i] = q.at[k];
            }
        } else {
            for (int k = 0; k < 4; ++k) {
                const Pair p = load_pair(tile + index(four + k, two));
                for (int i = 0; i < 2; ++i) a.at[k / 2][k % 2 * 2 + i] = p.at[i];
            }
        }
        return a;
    }

    SYMRNN_DEVICE static FragmentB load_b(const float *operand, int first, int) {
        const Quad<float> q =
            load_quad(operand + operand_index(first + lane_index() / 4, lane_index() % 4 * 4));
        return {{{q.at[0], q.at[1]}, {q.at[2], q.at[3]}}};
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const FragmentA &a, const FragmentB &b) {
        mma_tf32(sum, a.at[0], b.at[0]);
        mma_tf32(sum, a.at[1], b.at[1]);
    }
};

// Products of bfloat16 or half, on tensor cores, accumulated in float.
template <typename T>
struct Bits16 {
    using Number = T;
    using Stored = T;
    static constexpr int STEPS = 1;
    static constexpr int STRIPS = 3;

    struct FragmentA {
        uint32_t at[4];
    };
    struct FragmentB {
        uint32_t at[2];
    };

    // Four rows are a line of all banks. In every second line the halves of each row are swapped, so
    // that the half rows of eight rows, which are loaded at once, cover all banks.
    static constexpr int index(int row, int column) { return row * 16 + operand_unit(row, column); }
    static constexpr int operand_unit(int b, int r) {
        return (((r >> 3) ^ (b >> 2 & 1)) << 3) + (r & 7);
    }
    static constexpr int operand_index(int b, int r) { return index(b, r); }
    SYMRNN_DEVICE static void store(float *to, const float (&sum)[4], int k) {
        to[lane_index() / 4] = sum[k];
        to[lane_index() / 4 + 8] = sum[2 + k];
    }

    SYMRNN_DEVICE static T rounded(T x) { return x; }
    SYMRNN_DEVICE static void load_tile(T *tile, const T *packed) {
        for (int k = lane_index(); k < TILE / 4; k += WARP)
            *reinterpret_cast<Quad<T> *>(tile + index(k / 4, k % 4 * 4)) =
                *reinterpret_cast<const Quad<T> *>(packed + k * 4);
    }

    SYMRNN_DEVICE static FragmentA load_a(const T *tile, bool transposed, int) {
        const int row = lane_index() % 8, upper = lane_index() / 8 % 2, last = lane_index() / 16;
        FragmentA a;
        if (transposed) load_matrices(a.at, tile + index(row + upper * 8, last * 8));
        else load_matrices_transposed(a.at, tile + index(row + last * 8, upper * 8));
        return a;
    }

    SYMRNN_DEVICE static FragmentB load_b(const T *operand, int first, int) {
        FragmentB b;
        load_matrices(b.at, operand + operand_index(first + lane_index() % 8, lane_index() / 8 % 2 * 8));
        return b;
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const FragmentA &a, const FragmentB &b) {
        mma_16_bits<T>(sum, a.at, b.at);
    }
};

}  // namespace symrnn

#endif
