// Products of 16 rows of the weights and 8 sequences of a state by one warp, a chunk (64 bytes of each row
// and of each sequence) at a time: for each policy of products.h. RowProduct<Policy> has
//
//   STEPS        in how many equal steps a chunk is multiplied
//   TILES        how many tiles of 16 rows a warp multiplies at once; one more spills registers
//   A, load_a    a thread's part of the 16 rows in such a step: of two of them
//   B, load_b    a thread's part of the 8 sequences
//   multiply     sum += A · B
//   HeldA, part  a thread's part of 16 rows of a chunk, a quad of either of two rows; and its A for one of
//                the steps, of what its warp so holds in registers
//   HELD_EIGHTS  how many eights of sequences a warp multiplies at once beside what it holds, at most, and
//   HELD_AHEAD   how many chunks of them, if they are several, are on their way meanwhile: as many as spill
//                no registers
//
// A thread's sums are of the rows 2g and 2g + 1 and the sequences 2t and 2t + 1; g and t are the upper and
// the lower digit of its lane, 4 · g + t. Rows and sequences lie in memory as they are multiplied: each
// load is of 16 bytes, of weights from shared memory without a bank conflict, of states from L2 straight
// into registers. Each part of a state is needed by one warp of the block, and by that once, so shared
// memory would be a detour.

#ifndef SYMRNN_CUDA_ROWS_PRODUCTS_H
#define SYMRNN_CUDA_ROWS_PRODUCTS_H

#include "../rows_schedule.h"
#include "device.h"
#include "products.h"

namespace symrnn {

// Where a thread reads: its two rows of a chunk, in quads from the chunk's first.
struct RowPair {
    int at[2];
};

// On matrix units. Thread t has the words 4t … 4t+3 of a chunk, both of rows and of sequences: two of them
// for each of two instructions. In which order these multiply the terms does not matter, if it is the same
// for both. A word is a float or two adjacent terms of 16 bits; the instructions have the same shape in
// words.
template <typename Policy>
struct RowProduct {
    static constexpr int STEPS = 1;
    static constexpr int TILES = 4;
    static constexpr int HELD_EIGHTS = 3;
    static constexpr int HELD_AHEAD = sizeof(typename Policy::Stored) == 4 ? 2 : 3;
    struct A {
        Words row[2];
    };
    struct B {
        Words sequence;
    };
    using HeldA = A;

    SYMRNN_DEVICE static int first_quad() { return lane_index() % 4; }
    // The first sequence that this thread loads.
    SYMRNN_DEVICE static int first_sequence() { return lane_index() / 4; }

    SYMRNN_DEVICE static A load_a(const Words *chunk, const RowPair &rows, int) {
        return {{load_words(chunk + rows.at[0]), load_words(chunk + rows.at[1])}};
    }
    // left: how many sequences there are from this thread's first on.
    SYMRNN_DEVICE static B load_b(const Words *sequence, int left, int) {
        return {left > 0 ? load_past_l1(sequence) : Words{}};
    }

    SYMRNN_DEVICE static const A &part(const HeldA &held, int) { return held; }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const A &a, const B &b) {
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            const uint32_t rows[4] = {a.row[0].at[k], a.row[1].at[k], a.row[0].at[k + 1],
                                      a.row[1].at[k + 1]};
            const uint32_t sequences[2] = {b.sequence.at[k], b.sequence.at[k + 1]};
            multiply_words(Policy(), sum, rows, sequences);
        }
    }

  private:
    SYMRNN_DEVICE static void multiply_words(Tf32, float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
        const float rows[4] = {float_of(a[0]), float_of(a[1]), float_of(a[2]), float_of(a[3])};
        const float sequences[2] = {float_of(b[0]), float_of(b[1])};
        mma_tf32(sum, rows, sequences);
    }
    template <typename T>
    SYMRNN_DEVICE static void multiply_words(Bits16<T>, float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
        mma_16_bits<T>(sum, a, b);
    }
};

// Exactly, by each thread for itself: a step is a quad, of both its rows and both its sequences.
template <>
struct RowProduct<Exact> {
    static constexpr int STEPS = 4;
    static constexpr int TILES = 2;
    static constexpr int HELD_EIGHTS = 1;
    static constexpr int HELD_AHEAD = 1;
    struct A {
        Words row[2];
    };
    struct B {
        Words sequence[2];
    };
    using HeldA = A;

    SYMRNN_DEVICE static int first_quad() { return 0; }
    SYMRNN_DEVICE static int first_sequence() { return lane_index() % 4 * 2; }

    SYMRNN_DEVICE static A load_a(const Words *chunk, const RowPair &rows, int step) {
        return {{load_words(chunk + rows.at[0] + step), load_words(chunk + rows.at[1] + step)}};
    }
    SYMRNN_DEVICE static B load_b(const Words *sequence, int left, int step) {
        B b;
#pragma unroll
        for (int k = 0; k < 2; ++k)
            b.sequence[k] = left > k ? load_past_l1(sequence + k * CHUNK_QUADS + step) : Words{};
        return b;
    }

    // Four threads have the quads of the same two rows: each step takes those of one of them.
    SYMRNN_DEVICE static A part(const HeldA &held, int step) {
        A a;
#pragma unroll
        for (int i = 0; i < 2; ++i) a.row[i] = words_of_lane(held.row[i], lane_index() / 4 * 4 + step);
        return a;
    }

    SYMRNN_DEVICE static void multiply(float (&sum)[4], const A &a, const B &b) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    sum[i * 2 + j] += float_of(a.row[i].at[k]) * float_of(b.sequence[j].at[k]);
    }
};

}  // namespace symrnn

#endif
