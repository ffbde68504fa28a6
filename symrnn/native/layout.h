// The layout of packed matrices and of blocked vectors: index arithmetic and nothing else.
//
// A matrix is cut into tiles of 16 × 16. The order in memory is [panel][gate][tile][column][row]:
//
//   full:       panel I is the row of tiles (I, 0 … columns-1).
//   symmetric:  panel J is the column of tiles (s … tiles-1, J), from the first row s of J's free
//               block on. The tiles of the block serve one direction, those below it both: each
//               stands for its mirror image too.
//
// `symmetric` is 0 of full matrices, else f, the side of a free block in tiles, as symrnn.h has it.
// With f = 2 and five tiles along a side, * a tile of a free block and . one that is not stored:
//
//        J  0 1 2 3 4
//     I
//     0     * * . . .
//     1     * * . . .
//     2     x x * * .
//     3     x x * * .
//     4     x x x x *
//
// A blocked vector holds B vectors of N elements as [tile][b][16], padded with zeros: 16 elements of
// one b are one load, and the offset of element k from its tile is known at compile time.

#ifndef SYMRNN_LAYOUT_H
#define SYMRNN_LAYOUT_H

#include <stdint.h>

#include "symrnn.h"

namespace symrnn {

// The number of gates of a mode; 0 if there is no such mode.
constexpr int gates_of(int mode) {
    return mode == SYMRNN_LSTM                                       ? 4
           : mode == SYMRNN_GRU                                      ? 3
           : mode == SYMRNN_RNN_TANH || mode == SYMRNN_RNN_RELU ? 1
                                                                     : 0;
}

constexpr int64_t SIDE = 16;          // of a tile
constexpr int64_t TILE = SIDE * SIDE; // its elements

constexpr int64_t tiles_of(int64_t n) { return (n + SIDE - 1) / SIDE; }

// Of a side that is cut into blocks, the first index of the block of i.
constexpr int64_t block_start(int64_t block, int64_t i) { return i / block * block; }

// The entries in the first `rows` rows of a staircase: a square matrix without what is left of its
// blocks along the diagonal.
constexpr int64_t staircase(int64_t block, int64_t side, int64_t rows) {
    const int64_t blocks = rows / block;
    return block * (blocks * side - block * (blocks * (blocks - 1) / 2)) +
           rows % block * (side - blocks * block);
}

// The tiles first … last-1 of a panel. Of a symmetric one those from `mirrored` on stand for their
// mirror images too, and those before are of a free block.
struct Panel {
    int64_t index, first, mirrored, last;

    constexpr Panel(int symmetric, int64_t columns, int64_t index)
        : index(index),
          first(symmetric ? block_start(symmetric, index) : 0),
          mirrored(first + symmetric < columns ? first + symmetric : columns),
          last(columns) {}
};

// The tiles of one gate in a panel.
constexpr int64_t panel_tiles(int symmetric, int64_t columns, int64_t panel) {
    return columns - (symmetric ? block_start(symmetric, panel) : 0);
}

// The tiles of one gate in all panels before this one; `columns` in tiles.
constexpr int64_t tiles_before(int symmetric, int64_t columns, int64_t panel) {
    return symmetric ? staircase(symmetric, columns, panel) : panel * columns;
}

// The offset of a panel of so many gates, in elements.
constexpr int64_t panel_start(int symmetric, int64_t columns, int gates, int64_t panel) {
    return tiles_before(symmetric, columns, panel) * gates * TILE;
}

// The elements of a packed matrix; rows and columns in elements.
constexpr int64_t packed_length(int symmetric, int64_t rows, int64_t columns, int gates) {
    return panel_start(symmetric, tiles_of(columns), gates, tiles_of(rows));
}

// Packed int8 matrices: the tiles, of bytes [column / 4][row][column % 4], then for each gate the
// scales of its rows, and for each gate the sums of its rows, both padded to whole tiles.
struct Int8Matrices {
    int8_t *tiles;
    float *scale;      // (gates, 16 · tiles of rows)
    int32_t *row_sum;  // likewise

    Int8Matrices(const void *packed, int symmetric, int64_t rows, int64_t columns, int gates)
        : tiles(static_cast<int8_t *>(const_cast<void *>(packed))),
          scale(reinterpret_cast<float *>(tiles + packed_length(symmetric, rows, columns, gates))),
          row_sum(reinterpret_cast<int32_t *>(scale + gates * tiles_of(rows) * SIDE)) {}
};

// The most columns of an int8 matrix: sums of products of bytes stay below 2³¹.
constexpr int64_t INT8_COLUMNS = 65536;

constexpr bool is_bfloat16(int dtype) {  // of packed numbers
    return dtype == SYMRNN_BFLOAT16 || dtype == SYMRNN_BFLOAT16_BOTH;
}

// The bytes of packed matrices.
constexpr int64_t packed_bytes(int dtype, int symmetric, int64_t rows, int64_t columns, int gates) {
    const int64_t length = packed_length(symmetric, rows, columns, gates);
    return dtype == SYMRNN_INT8       ? length + gates * tiles_of(rows) * SIDE * 8
           : is_bfloat16(dtype)       ? 2 * length
           : dtype == SYMRNN_DOUBLE   ? 8 * length
                                      : 4 * length;
}

// The first panel of share `k` of `shares`. All shares have about as many tiles.
inline int64_t first_panel(int symmetric, int64_t panels, int64_t columns, int64_t k,
                           int64_t shares) {
    if (!symmetric) return panels * k / shares;
    const int64_t all = tiles_before(symmetric, columns, panels);
    int64_t low = 0, high = panels;  // the first panel with enough tiles before it
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        // Rounded: a panel goes to the share that most of its tiles belong to.
        const int64_t reached = tiles_before(symmetric, columns, middle) +
                                panel_tiles(symmetric, columns, middle) / 2;
        if (reached * shares < all * k) low = middle + 1;
        else high = middle;
    }
    return k == shares ? panels : low;
}

}  // namespace symrnn

#endif
