// Products of a tile (16 × 16) by 16 numbers of each of 8 sequences, by the 32 threads of a warp, one
// struct for each kind of arithmetic. Each has
//
//   Number    of the arrays and of the packed weights
//   Stored    of shared memory
//   hold      puts a packed tile into shared memory, its numbers placed such that reading it along its
//             rows and across them both keep all banks busy
//   place     where unit r of sequence b of an operand tile, [b][16], is put
//   Left      what a thread holds of A, the tile or its transpose (PTX: fragments), for one of STEPS
//             equal parts of the sum
//   Right     what it holds of the operand
//   multiply  sum += A · operand
//   STRIPS    of how many A one warp holds such a part at once; one more, and registers run out
//   store     of the four sums of a lane, which are of two rows of the tile and of the sequences
//             2 · (lane % 4) and the next, those of the k-th sequence
//
// A tile is stored column by column, so in memory M[c][r] = W[r][c]: W is read across memory's rows
// and Wᵀ along them. The order of the terms of a sum may be any, if both factors have the same; the
// loads below take the one that makes them wide.

#ifndef SYMRNN_CUDA_PRODUCTS_H
#define SYMRNN_CUDA_PRODUCTS_H

#include "../layout.h"
#include "device.h"

namespace symrnn {

// How float tiles and operands lie; shared by both kinds of arithmetic on them.
struct FloatPlaces {
    using Number = float;
    using Stored = float;

    // The index of M[row][column]. Two rows fill the 32 banks once; of eight quads in such a line
    // each is moved to another place, by a number that differs from line to line such that neither
    // quads of eight lines' rows nor pairs of sixteen numbers of one column block meet in a bank.
    static constexpr int index(int row, int column) {
        const int line = row >> 1;
        const int moved = ((line >> 1) ^ ((line & 1) << 1)) << 1;
        return line * 32 + ((((row & 1) << 2) + (column >> 2)) ^ moved) * 4 + (column & 3);
    }

    static constexpr int place(int b, int r) {
        return b * 16 + ((r >> 2) ^ ((b >> 1) & 3)) * 4 + (r & 3);
    }

    SYMRNN_DEVICE static void store(float *to, const float (&sum)[4], int k) {
        *reinterpret_cast<Pair *>(to + lane_index() / 4 * 2) = {{sum[k], sum[2 + k]}};
    }

    template <typename Rounding>
    SYMRNN_DEVICE static void hold(float *tile, const float *packed, const Rounding &rounded) {
        for (int k = lane_index(); k < TILE / 4; k += WARP) {
            Quad<float> quad = load_quad(packed + k * 4);
            for (float &x : quad.at) x = rounded(x);
            *reinterpret_cast<Quad<float> *>(tile + index(k / 4, k % 4 * 4)) = quad;
        }
    }
};

// Products of float, exact, summed in float.
struct Exact : FloatPlaces {
    static constexpr int STEPS = 4;  // 4 terms of a sum each
    static constexpr int STRIPS = 2;

    struct Left {
        float at[2][4];  // two rows of A, 4 terms
    };
    struct Right {
        float at[2][4];  // two sequences, 4 terms
    };

    SYMRNN_DEVICE static float rounded(float x) { return x; }
    SYMRNN_DEVICE static void hold(float *tile, const float *packed) {
        FloatPlaces::hold(tile, packed, [](float x) { return x; });
    }

    SYMRNN_DEVICE static Left left(const float *tile, bool turned, int step) {
        const int two = lane_index() / 4 * 2;
        Left a;
        if (turned) {
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

    SYMRNN_DEVICE static Right right(const float *operand, int first, int step) {
        const int two = first + lane_index() % 4 * 2;
        Right b;
        for (int j = 0; j < 2; ++j) {
            const Quad<float> q = load_quad(operand + place(two + j, step * 4));
            for (int k = 0; k < 4; ++k) b.at[j][k] = q.at[k];
        }
        return b;
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const Left &a, const Right &b) {
        for (int k = 0; k < 4; ++k)
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j) sum[i * 2 + j] += a.at[i][k] * b.at[j][k];
    }
};

// Products of numbers rounded to TF32, on the matrix units, summed in float.
struct Tf32 : FloatPlaces {
    static constexpr int STEPS = 1;
    static constexpr int STRIPS = 3;

    struct Left {
        float at[2][4];  // of two multiplications
    };
    struct Right {
        float at[2][2];
    };

    SYMRNN_DEVICE static float rounded(float x) { return round_to_tf32(x); }
    SYMRNN_DEVICE static void hold(float *tile, const float *packed) {
        FloatPlaces::hold(tile, packed, [](float x) { return round_to_tf32(x); });
    }

    // Lane (g, t) has the terms 4t … 4t+3: two for each multiplication.
    SYMRNN_DEVICE static Left left(const float *tile, bool turned, int) {
        const int two = lane_index() / 4 * 2, four = lane_index() % 4 * 4;
        Left a;
        if (turned) {
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

    SYMRNN_DEVICE static Right right(const float *operand, int first, int) {
        const Quad<float> q =
            load_quad(operand + place(first + lane_index() / 4, lane_index() % 4 * 4));
        return {{{q.at[0], q.at[1]}, {q.at[2], q.at[3]}}};
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const Left &a, const Right &b) {
        mma_tf32(sum, a.at[0], b.at[0]);
        mma_tf32(sum, a.at[1], b.at[1]);
    }
};

// Products of bfloat16 or half, on the matrix units, summed in float.
template <typename T>
struct Bits16 {
    using Number = T;
    using Stored = T;
    static constexpr int STEPS = 1;
    static constexpr int STRIPS = 3;

    struct Left {
        uint32_t at[4];
    };
    struct Right {
        uint32_t at[2];
    };

    // Four rows fill the banks; in every other four the halves of a row change places, so that the
    // halves of eight rows, which are loaded at once, are in all of them.
    static constexpr int index(int row, int column) {
        return row * 16 + (((column >> 3) ^ (row >> 2 & 1)) << 3) + (column & 7);
    }
    static constexpr int place(int b, int r) { return index(b, r); }
    SYMRNN_DEVICE static void store(float *to, const float (&sum)[4], int k) {
        to[lane_index() / 4] = sum[k];
        to[lane_index() / 4 + 8] = sum[2 + k];
    }

    SYMRNN_DEVICE static T rounded(T x) { return x; }
    SYMRNN_DEVICE static void hold(T *tile, const T *packed) {
        for (int k = lane_index(); k < TILE / 4; k += WARP)
            *reinterpret_cast<Quad<T> *>(tile + index(k / 4, k % 4 * 4)) =
                *reinterpret_cast<const Quad<T> *>(packed + k * 4);
    }

    SYMRNN_DEVICE static Left left(const T *tile, bool turned, int) {
        const int row = lane_index() % 8, upper = lane_index() / 8 % 2, last = lane_index() / 16;
        Left a;
        if (turned) load_matrices(a.at, tile + index(row + upper * 8, last * 8));
        else load_turned_matrices(a.at, tile + index(row + last * 8, upper * 8));
        return a;
    }

    SYMRNN_DEVICE static Right right(const T *operand, int first, int) {
        Right b;
        load_matrices(b.at, operand + place(first + lane_index() % 8, lane_index() / 8 % 2 * 8));
        return b;
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const Left &a, const Right &b) {
        mma_16_bits<T>(sum, a.at, b.at);
    }
};

}  // namespace symrnn

#endif
