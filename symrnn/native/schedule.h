// Which thread block of a GPU stores which weights and computes what: arithmetic and nothing else.
// "Block" alone means a thread block.
//
// The hidden matrices of the G gates are symmetric, n × n tiles each (see layout.h). The lower triangle
// of each is cut into squares, m along a side. A square below the diagonal goes to one block. Of two
// squares on the diagonal the lower triangles are stored; they share a block. With m = 4:
//
//      J  0   1   2   3
//   I
//   0     6                   the blocks 0 … 5 have a square each,
//   1     0   6               6 and 7 two on the diagonal;
//   2     1   2   7           the next gate's are the blocks 8 … 15.
//   3     3   4   5   7
//
// A block has the same square of q gates. q > 1 means more, smaller squares.
//
// A step has two halves. First each block multiplies: its square (I, J) serves both triangles,
// y_I += W x_J and y_J += Wᵀ x_I, and writes both as partial sums. Then the rows (16 units of one
// sequence) are distributed over all blocks: a block adds up the partial sums of its rows, always in
// the same order, and computes the pointwise part. Between the halves a block waits for the blocks
// that it reads from, and for no others.

#ifndef SYMRNN_SCHEDULE_H
#define SYMRNN_SCHEDULE_H

#include <stdint.h>

#include "layout.h"

namespace symrnn {

struct Span {
    int first, last;  // exclusive
    constexpr int count() const { return last - first; }
};

// A tile of a block's squares: its index among those of one gate; `transposed` if it serves as Wᵀ.
struct StoredTile {
    int index;
    bool transposed;
};

struct Schedule {
    int units, gates, batch;
    int tiles;     // n, along a side of a matrix
    int squares;   // m
    int together;  // q, a divisor of G

    static constexpr int blocks_of(int squares) {
        return squares * (squares - 1) / 2 + (squares + 1) / 2;
    }
    constexpr int blocks_of_gate() const { return blocks_of(squares); }
    constexpr int sets() const { return gates / together; }
    constexpr int blocks() const { return blocks_of_gate() * sets(); }

    // The tiles of a square's side; empty for a square beyond the last.
    constexpr Span side(int square) const {
        if (square >= squares) return {tiles, tiles};
        return {first_tile(square), first_tile(square + 1)};
    }
    constexpr int first_tile(int square) const {
        return static_cast<int>(static_cast<int64_t>(tiles) * square / squares);
    }
    constexpr int square_of(int tile) const {
        return static_cast<int>(((tile + int64_t(1)) * squares - 1) / tiles);
    }
    constexpr int longest_side() const { return (tiles + squares - 1) / squares; }

    // Which block of a set writes the partial sums that the units of square `to` get from those of square
    // `from`.
    constexpr int block_of_partial_sum(int set, int to, int from) const {
        const int row = to > from ? to : from, column = to > from ? from : to;
        const int below = row * (row - 1) / 2 + column,
                  diagonal = squares * (squares - 1) / 2 + to / 2;
        return set * blocks_of_gate() + (to == from ? diagonal : below);
    }

    // Rows are numbered tile by tile, and distributed in this order.
    constexpr int rows() const { return tiles * batch; }
    constexpr int first_row(int block) const {
        return static_cast<int>(static_cast<int64_t>(rows()) * block / blocks());
    }
    constexpr int block_of_row(int row) const {
        return static_cast<int>(((row + int64_t(1)) * blocks() - 1) / rows());
    }

    // What is exchanged, [vector][row][unit of the tile]: the state or, in the backward pass, the
    // gradients of each gate. Units beyond the last are zeros.
    constexpr int exchanged_vectors(bool backward) const { return backward ? gates : 1; }
    constexpr int vector_elements() const { return rows() * static_cast<int>(SIDE); }
    constexpr int64_t exchange_elements(bool backward) const {
        return static_cast<int64_t>(exchanged_vectors(backward)) * rows() * SIDE;
    }

    // The layout of partial sums: [row][square that they come from][vector][unit of the tile]. So what is
    // added up lies at equal distances. In the forward pass there is a vector for each gate, in the
    // backward pass one for each set, the sum over its gates.
    constexpr int vectors(bool backward) const { return backward ? sets() : gates; }
    constexpr int64_t partial_sum_start(int row, int from, int vector, bool backward) const {
        return ((static_cast<int64_t>(row) * squares + from) * vectors(backward) + vector) * SIDE;
    }
    constexpr int64_t partial_sum_elements(bool backward) const {
        return partial_sum_start(rows(), 0, 0, backward);
    }
};

// The weights of one block: the squares (I, J), or (I, I) and (J, J), of the gates from `gate` on.
struct Share {
    int gate;
    bool diagonal;
    int first_square, second_square;  // I and J
    Span first, second;               // the tiles of these sides

    constexpr Share(const Schedule &s, int block)
        : gate(), diagonal(), first_square(), second_square(), first(), second() {
        const int within = block % s.blocks_of_gate(), below = s.squares * (s.squares - 1) / 2;
        gate = block / s.blocks_of_gate() * s.together;
        diagonal = within >= below;
        int row = (within - below) * 2, column = row + 1;
        if (!diagonal) {
            row = 1;
            while (row * (row + 1) / 2 <= within) ++row;
            column = within - row * (row - 1) / 2;
        }
        first_square = row, second_square = column;
        first = s.side(row);
        second = s.side(column);
    }

    // Not an array: a GPU cannot index registers.
    constexpr Span side(int k) const { return k == 0 ? first : second; }
    constexpr int square(int k) const { return k == 0 ? first_square : second_square; }

    // The tiles of one gate.
    constexpr int tiles() const {
        if (!diagonal) return first.count() * second.count();
        return triangle(first.count()) + triangle(second.count());
    }

    // The tile that multiplies the units of tile k into the sum of tile a of side `to`. k is a tile
    // of the other side or, of a square on the diagonal, of the same side.
    constexpr StoredTile tile(int to, int a, int k) const {
        if (!diagonal)
            return to == 0 ? StoredTile{a * second.count() + k, false}
                           : StoredTile{k * second.count() + a, true};
        const int before = to == 0 ? 0 : triangle(first.count());
        return k <= a ? StoredTile{before + triangle(a) + k, false}
                      : StoredTile{before + triangle(k) + a, true};
    }
    constexpr int from(int to) const { return diagonal ? to : 1 - to; }

    // From the index of tile(to, a, k) to that of tile(to, a, k + 1).
    constexpr int step(int to, int a, int k) const {
        if (!diagonal) return to == 0 ? 1 : second.count();
        return k < a ? 1 : k + 1;
    }

    // Which tile of the matrix is stored at this index.
    struct Position {
        int row, column;
    };
    constexpr Position position(int index) const {
        if (!diagonal) {
            const int width = second.count();
            return {first.first + index / width, second.first + index % width};
        }
        const bool later = index >= triangle(first.count());
        if (later) index -= triangle(first.count());
        const int before = later ? second.first : first.first;
        int row = 0;
        while (triangle(row + 1) <= index) ++row;
        return {before + row, before + index - triangle(row)};
    }

  private:
    static constexpr int triangle(int n) { return n * (n + 1) / 2; }
};

// The offset of a tile (row, column) of a symmetric packed matrix, row ≥ column.
constexpr int64_t packed_tile(int64_t tiles, int gates, int gate, int64_t row, int64_t column) {
    return panel_start(1, tiles, gates, column) +
           (gate * (tiles - column) + row - column) * TILE;
}

// ---- what fits a GPU -----------------------------------------------------------------------------

constexpr int COLUMNS[] = {8, 16, 24, 32};  // the sequences that can be multiplied at once
constexpr int MAX_SQUARES = 64;
constexpr int MAX_BLOCKS = 384;  // so no block waits for more others; no GPU has so many processors
constexpr int MAX_ROWS = 1 << 30;  // of 16 units of a sequence
constexpr int MAX_TILES = 1 << 12;  // along a side: far more than fit
constexpr int64_t MAX_ELEMENTS = 0x7fffffff;  // of partial sums, and exchanged: offsets have 32 bits

struct Fit {
    Schedule schedule;
    int columns;
    int64_t shared_bytes;
};

// The elements in a block's shared memory: the weights of the largest share, and the operand of both
// its sides; in the backward pass one for each gate.
constexpr int64_t weight_elements(const Schedule &s) {
    int most = 0;
    for (int block = 0; block < s.blocks_of_gate(); ++block) {
        const int tiles = Share(s, block).tiles();
        if (tiles > most) most = tiles;
    }
    return static_cast<int64_t>(most) * s.together * TILE;
}
constexpr int64_t operand_elements(const Schedule &s, int columns, bool backward) {
    return static_cast<int64_t>(2) * s.longest_side() * (backward ? s.together : 1) * columns *
           SIDE;
}

// Floats carried from step to step, one for each unit and sequence: an LSTM's cell state or its
// gradient, a GRU's part of the gradient that bypasses the matrices.
constexpr int64_t carry_elements(const Schedule &s) {
    return static_cast<int64_t>(s.batch) * s.units;
}

// The workspace: first the flags, two for each block and one for all, then the carry, then the partial
// sums, then what is exchanged, in weights' type, each at a multiple of 256 bytes. Flags are a cache line
// apart: polling them is to be spread over the memory channels.
constexpr int FLAG = 32;  // from one flag to the next, in words of 4 bytes
constexpr int64_t flag_bytes(const Schedule &s) {
    return (static_cast<int64_t>(s.blocks()) * 2 + 1) * FLAG * 4;
}
constexpr int64_t carry_start(const Schedule &s) { return (flag_bytes(s) + 255) / 256 * 256; }
constexpr int64_t partial_sums_start(const Schedule &s) {
    return carry_start(s) + (carry_elements(s) * 4 + 255) / 256 * 256;
}
constexpr int64_t exchange_start(const Schedule &s, bool backward) {
    return partial_sums_start(s) + (s.partial_sum_elements(backward) * 4 + 255) / 256 * 256;
}
constexpr int64_t workspace_bytes(const Schedule &s, bool backward, int weight_bytes) {
    return exchange_start(s, backward) + s.exchange_elements(backward) * weight_bytes;
}

// How a layer is distributed over a GPU's multiprocessors and their shared memory; false if it does
// not fit.
//
// Each multiprocessor gets at most one block. Of the possible distributions the one with the smallest
// largest share of the weights is chosen; among equals the one with the fewest partial sums. Of the
// numbers of sequences multiplied at once that fit, the one that takes the fewest passes, for each reads
// all weights; among equals the smallest.
constexpr bool find_fit(int multiprocessors, int64_t shared_bytes, int units, int gates, int batch,
                         int weight_bytes, bool backward, Fit &fit) {
    bool found = false;
    int64_t least = 0, fewest = 0;
    if (tiles_of(units) > MAX_TILES || tiles_of(units) > MAX_ROWS / batch) return false;
    for (int together = 1; together <= gates; ++together) {
        if (gates % together != 0) continue;
        Schedule s{units, gates, batch, static_cast<int>(tiles_of(units)), 0, together};
        const int blocks = multiprocessors < MAX_BLOCKS ? multiprocessors : MAX_BLOCKS;
        while (s.squares < s.tiles && s.squares < MAX_SQUARES &&
               Schedule::blocks_of(s.squares + 1) * s.sets() <= blocks)
            ++s.squares;
        if (s.squares == 0) continue;
        const int64_t weights = weight_elements(s), sums = s.partial_sum_elements(backward);
        if (sums > MAX_ELEMENTS || s.exchange_elements(backward) > MAX_ELEMENTS) continue;
        if (found && (weights > least || (weights == least && sums >= fewest))) continue;
        int best = 0, passes = 0;
        for (const int columns : COLUMNS) {
            if ((weights + operand_elements(s, columns, backward)) * weight_bytes > shared_bytes) break;
            const int now = (batch - 1) / columns + 1;
            if (best > 0 && now >= passes) continue;
            best = columns;
            passes = now;
        }
        if (best == 0) continue;
        fit = {s, best, (weights + operand_elements(s, best, backward)) * weight_bytes};
        least = weights;
        fewest = sums;
        found = true;
    }
    return found;
}

}  // namespace symrnn

#endif
