// Which block of threads of a GPU holds which weights and does what: arithmetic and nothing else.
//
// The hidden matrices of the G gates are symmetric, n × n tiles each (see layout.h). The triangle of
// each is cut into squares, m along a side. A square below the diagonal goes to one block; two on the
// diagonal, of which the lower halves are stored, share a block. With m = 4:
//
//      J  0   1   2   3
//   I
//   0     6                   the blocks 0 … 5 have a square each,
//   1     0   6               6 and 7 two on the diagonal;
//   2     1   2   7           the next gate's are the blocks 8 … 15.
//   3     3   4   5   7
//
// A block has the same square of q gates, where fewer and larger squares would be worse.
//
// A step is done in two halves. First each block multiplies: its square (I, J) serves both triangles,
// y_I += W x_J and y_J += Wᵀ x_I, and both sums are left as the block's parts. Then the rows of 16
// units (a tile) of one sequence are dealt out to all blocks; whoever gets one adds its parts, always
// in the same order, and does the arithmetic of the cells. Between the halves a block
// waits for those it reads from, and for no others.

#ifndef SYMRNN_SCHEDULE_H
#define SYMRNN_SCHEDULE_H

#include <stdint.h>

#include "layout.h"

namespace symrnn {

struct Span {
    int first, last;  // without the last
    constexpr int count() const { return last - first; }
};

// Whose part of a sum it is: a block's, for the first or the second side of its squares.
struct Part {
    int block, side;
};

// Where a tile of a block's squares is, among those of one gate; `turned` if it serves as Wᵀ.
struct HeldTile {
    int index;
    bool turned;
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

    // The tiles of a square's side; none of a square that there is not.
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

    // Who adds to the sum of square `to` the part that comes of square `from`'s units.
    constexpr Part part(int set, int to, int from) const {
        // Not by branches, so that a GPU does many at once.
        const int row = to > from ? to : from, column = to > from ? from : to;
        const int below = row * (row - 1) / 2 + column,
                  diagonal = squares * (squares - 1) / 2 + to / 2;
        return {set * blocks_of_gate() + (to == from ? diagonal : below),
                to == from ? to % 2 : to < from};
    }

    // Rows of 16 units of one sequence are numbered tile by tile, and dealt out in this order.
    constexpr int rows() const { return tiles * batch; }
    constexpr int first_row(int block) const {
        return static_cast<int>(static_cast<int64_t>(rows()) * block / blocks());
    }
    constexpr int block_of_row(int row) const {
        return static_cast<int>(((row + int64_t(1)) * blocks() - 1) / rows());
    }

    // Parts lie as [block][side][vector][sequence][unit of the side]. A block leaves a vector for
    // each of its gates on the way forth, and one, the sum over them, on the way back.
    constexpr int part_width() const { return longest_side() * static_cast<int>(SIDE); }
    constexpr int vectors(bool backward) const { return backward ? 1 : together; }
    constexpr int64_t part_start(Part part, int vector, int sequence, bool backward) const {
        return (((static_cast<int64_t>(part.block) * 2 + part.side) * vectors(backward) + vector) *
                    batch + sequence) * part_width();
    }
    constexpr int64_t part_numbers(bool backward) const {
        return part_start({blocks(), 0}, 0, 0, backward);
    }
};

// What one block has: the squares (I, J), or (I, I) and (J, J), of the gates from `gate` on.
struct Share {
    int gate;
    bool diagonal;
    Span first, second;  // the tiles of the sides I and J

    constexpr Share(const Schedule &s, int block) : gate(), diagonal(), first(), second() {
        const int within = block % s.blocks_of_gate(), below = s.squares * (s.squares - 1) / 2;
        gate = block / s.blocks_of_gate() * s.together;
        diagonal = within >= below;
        int row = (within - below) * 2, column = row + 1;
        if (!diagonal) {
            row = 1;
            while (row * (row + 1) / 2 <= within) ++row;
            column = within - row * (row - 1) / 2;
        }
        first = s.side(row);
        second = s.side(column);
    }

    // Not an array: a GPU has no registers that can be indexed.
    constexpr Span side(int k) const { return k == 0 ? first : second; }

    // The tiles of one gate.
    constexpr int tiles() const {
        if (!diagonal) return first.count() * second.count();
        return triangle(first.count()) + triangle(second.count());
    }

    // The tile by which the units of tile k are multiplied for the sum of tile a of side `to`; k is
    // a tile of the other side, or of the same side of a square on the diagonal.
    constexpr HeldTile tile(int to, int a, int k) const {
        if (!diagonal)
            return to == 0 ? HeldTile{a * second.count() + k, false}
                           : HeldTile{k * second.count() + a, true};
        const int before = to == 0 ? 0 : triangle(first.count());
        return k <= a ? HeldTile{before + triangle(a) + k, false}
                      : HeldTile{before + triangle(k) + a, true};
    }
    constexpr int from(int to) const { return diagonal ? to : 1 - to; }

    // From the index of tile(to, a, k) to that of tile(to, a, k + 1).
    constexpr int step(int to, int a, int k) const {
        if (!diagonal) return to == 0 ? 1 : second.count();
        return k < a ? 1 : k + 1;
    }

    // Which tile of the matrix is held at this index.
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

// The number before a tile (row, column) of a symmetric packed matrix, row ≥ column.
constexpr int64_t packed_tile(int64_t tiles, int gates, int gate, int64_t row, int64_t column) {
    return panel_start(true, tiles, gates, column) +
           (gate * (tiles - column) + row - column) * TILE;
}

// ---- what a GPU has room for ---------------------------------------------------------------------

constexpr int COLUMNS[] = {8, 16, 24};  // the sequences that can be multiplied at once
constexpr int MOST_SQUARES = 64;
constexpr int MOST_BLOCKS = 384;  // then no block waits for more others; no GPU has so many processors
constexpr int MOST_ROWS = 1 << 30;  // of 16 units of a sequence
constexpr int MOST_TILES = 1 << 12;  // along a side: far more than there is room for
constexpr int64_t MOST_PARTS = 0x7fffffff;  // numbers: they are found by 32 bits

struct Room {
    Schedule schedule;
    int columns;
    int64_t shared_bytes;
};

// The numbers of a block's shared memory: the weights of the largest share, and what they are
// multiplied by, of both its sides; on the way back for each gate.
constexpr int64_t held_numbers(const Schedule &s) {
    int most = 0;
    for (int block = 0; block < s.blocks_of_gate(); ++block) {
        const int tiles = Share(s, block).tiles();
        if (tiles > most) most = tiles;
    }
    return static_cast<int64_t>(most) * s.together * TILE;
}
constexpr int64_t operand_numbers(const Schedule &s, int columns, bool backward) {
    return static_cast<int64_t>(2) * s.longest_side() * (backward ? s.together : 1) * columns *
           SIDE;
}

// Floats that the blocks remember from step to step, for each unit and sequence one: an LSTM's cell
// state or its gradient, a GRU's part of the gradient that goes past the matrices.
constexpr int64_t carry_numbers(const Schedule &s) {
    return static_cast<int64_t>(s.batch) * s.units;
}

// The workspace: first the flags, two for each block, then the carry, then the parts, each at a
// multiple of 256 bytes. From one flag to the next it is a line of the cache: all that wait look
// again and again, which is to be spread over the memory's channels.
constexpr int FLAG = 32;  // in numbers of 4 bytes
constexpr int64_t flag_bytes(const Schedule &s) {
    return static_cast<int64_t>(s.blocks()) * 2 * FLAG * 4;
}
constexpr int64_t carry_start(const Schedule &s) { return (flag_bytes(s) + 255) / 256 * 256; }
constexpr int64_t parts_start(const Schedule &s) {
    return carry_start(s) + (carry_numbers(s) * 4 + 255) / 256 * 256;
}
constexpr int64_t workspace_bytes(const Schedule &s, bool backward) {
    return parts_start(s) + s.part_numbers(backward) * 4;
}

// How a layer is shared out on a GPU of so many multiprocessors and so much shared memory, or false
// if that cannot be.
//
// Of the ways to give each multiprocessor at most one block it takes that whose largest share of
// the weights is smallest; of equals, that which leaves the fewest parts. Of the numbers of sequences
// at once for which there is room it takes that which wastes the least, and of equals the largest.
constexpr bool find_room(int multiprocessors, int64_t shared_bytes, int units, int gates, int batch,
                         int weight_bytes, bool backward, Room &room) {
    bool found = false;
    int64_t least = 0, fewest = 0;
    if (tiles_of(units) > MOST_TILES || tiles_of(units) > MOST_ROWS / batch) return false;
    for (int together = 1; together <= gates; ++together) {
        if (gates % together != 0) continue;
        Schedule s{units, gates, batch, static_cast<int>(tiles_of(units)), 0, together};
        const int blocks = multiprocessors < MOST_BLOCKS ? multiprocessors : MOST_BLOCKS;
        while (s.squares < s.tiles && s.squares < MOST_SQUARES &&
               Schedule::blocks_of(s.squares + 1) * s.sets() <= blocks)
            ++s.squares;
        if (s.squares == 0) continue;
        const int64_t held = held_numbers(s), parts = s.part_numbers(backward);
        if (parts > MOST_PARTS) continue;
        if (found && (held > least || (held == least && parts >= fewest))) continue;
        int best = 0, multiplied = 0;
        for (const int columns : COLUMNS) {
            if ((held + operand_numbers(s, columns, backward)) * weight_bytes > shared_bytes) break;
            const int all = (batch + columns - 1) / columns * columns;
            if (best > 0 && all > multiplied) continue;
            best = columns;
            multiplied = all;
        }
        if (best == 0) continue;
        room = {s, best, (held + operand_numbers(s, best, backward)) * weight_bytes};
        least = held;
        fewest = parts;
        found = true;
    }
    return found;
}

}  // namespace symrnn

#endif
