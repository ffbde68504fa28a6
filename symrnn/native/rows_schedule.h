// The second way to distribute a layer over a GPU: by rows of the full matrices. Arithmetic and nothing
// else. "Block" alone means a thread block.
//
// A block has U units: their rows of all G hidden matrices, whole, in shared memory and, where that is not
// enough, in part in registers. So it computes everything about its units by itself, and a step has one
// exchange: each block writes the state of its units, and reads the state of all. The matrices of schedule.h
// take half the memory, and need a second exchange, of partial sums.
//
// A matrix is its own transpose, so the same rows serve the backward pass: there a block reads the
// gradients of all gates of all units, and the gradient of its units' h is
//
//     d_h[u] = Σ_g Σ_k W_g[k, u] · d_gate_g[k] = Σ_g Σ_k W_g[u, k] · d_gate_g[k]
//
// The rows of a block are numbered gate by gate, g · U + u. Along a row, and along a state, units come in
// chunks of 64 bytes: 16 of float, 32 of 16 bits.
//
// Two layers, the second a step behind the first (wavefront.h), are distributed as one with three matrices
// for each gate: a block has the same U units of both layers, and their rows of
//
//     0  the hidden weights of the first layer     of h of the first layer
//     1  the input weights of the second           of the same h, perhaps masked otherwise
//     2  the hidden weights of the second          of h of the second
//
// So all blocks do the same, and one exchange a step serves both layers. With some blocks for one layer and
// some for the other, two to one by the rows, each would have as many rows: nothing would fit that does not
// fit so. 12 · H² weights of LSTMs: on 132 multiprocessors with 227 KiB each up to H = 1056 in 16 bits
// and H = 752 in float, with 20 sequences.
//
// In the backward pass the first layer is a step behind the second. The rows of 1 are of the transposes
// there, and both 1 and 2 are of the gradients of the second layer's gates. So their rows are neighbours,
// gate by gate, and multiplied as those of one matrix, 2 · U of a gate. But not of a GRU, whose gradients of
// n differ: of 1 it is that of the input's part, of 2 that of W_n h + b_n.

#ifndef SYMRNN_ROWS_SCHEDULE_H
#define SYMRNN_ROWS_SCHEDULE_H

#include <stdint.h>

#include "schedule.h"

namespace symrnn {

constexpr int ROW_WARPS = 8;      // of a block
constexpr int PARTIAL_SUMS = 4;   // of each result, that a block has in shared memory at once
constexpr int CHUNK_BYTES = 64;
constexpr int CHUNK_QUADS = CHUNK_BYTES / 16;
constexpr int ROW_COLUMNS[] = {8, 16, 24, 32};  // the sequences that can be multiplied at once
constexpr int WAVEFRONT_MATRICES = 3;           // of each gate, of two layers
constexpr int WAVEFRONT_COLUMNS = 24;           // and the most sequences at once: more spill registers
constexpr int64_t MAX_EXCHANGE = 0x7fffffff;    // elements: their offsets have 32 bits

// Registers as a further store, of one layer. A warp always multiplies the same rows by the same chunks, so
// it can hold some of them from the first step to the last: 16 rows of a chunk, a tile, are 1 KiB or 8
// registers of each thread. How many are held, and multiplied at once, is built into a kernel. So on 132
// multiprocessors with 227 KiB each an LSTM has up to H = 1584 in float, where shared memory alone is
// enough for 1320, and H = 2112 in 16 bits.
constexpr int HELD_COLUMNS[] = {8, 24};  // as ROW_COLUMNS
// The tiles that are multiplied at once: forward those of all gates, in the backward pass that of one.
constexpr int held_at_once(int weight_bytes, bool backward) {
    return backward ? 1 : weight_bytes == 4 ? 3 : 4;
}
// And of how many chunks they are held. With more, registers are spilled or nothing more fits.
constexpr int held_chunks(int weight_bytes, bool backward, int gates) {
    return backward ? 12 / gates : weight_bytes == 4 ? 4 : 2;
}

struct RowSchedule {
    int units, gates, batch;
    int own;    // U, the units of a block; the last may have fewer
    int chunk;  // the units of a chunk
    int matrices = 1;  // of each gate: 1, or WAVEFRONT_MATRICES
    int held = 0;      // chunks of each warp, the first it has, whose rows are in registers

    constexpr int layers() const { return matrices == 1 ? 1 : 2; }
    constexpr int blocks() const { return (units + own - 1) / own; }
    constexpr int chunks() const { return (units + chunk - 1) / chunk; }

    constexpr Span units_of(int block) const {
        const int last = (block + 1) * own;
        return {block * own, last < units ? last : units};
    }

    // The chunks that a warp multiplies, of each row: neighbours, so that few blocks compute their units.
    constexpr Span chunks_of(int warp) const {
        return {chunks() * warp / ROW_WARPS, chunks() * (warp + 1) / ROW_WARPS};
    }
    // The blocks that compute the units of these chunks.
    constexpr Span producers(Span of) const {
        if (of.first == of.last) return {0, 0};
        const int last = of.last * chunk < units ? of.last * chunk : units;
        return {of.first * chunk / own, (last - 1) / own + 1};
    }

    // The rows in shared memory, an even number.
    constexpr int rows() const { return (matrices * gates * own + 1) / 2 * 2; }
    // Products are of 16 rows of a matrix: those of all gates at once or, in the backward pass, gate by gate.
    constexpr int tiles(bool backward) const {
        return ((backward ? own : gates * own) + static_cast<int>(SIDE) - 1) / static_cast<int>(SIDE);
    }
    // Whether the matrices 1 and 2 are multiplied as one. GRUs alone have three gates.
    constexpr bool paired(bool backward) const { return backward && matrices > 1 && gates != 3; }
    // Of all matrices, each of which, or of which both, begin with a tile.
    constexpr int all_tiles(bool backward) const {
        if (!paired(backward)) return matrices * tiles(backward);
        return tiles(true) + (2 * own + static_cast<int>(SIDE) - 1) / static_cast<int>(SIDE);
    }

    // The chunks whose rows are in shared memory lie there one after the other, warp by warp. Either all
    // warps have at least as many chunks as they hold, or none has more.
    constexpr int stored_chunks() const {
        const int all = chunks() - held * ROW_WARPS;
        return all > 0 ? all : 0;
    }
    // Where those of a warp begin.
    constexpr int first_stored(int warp) const {
        return stored_chunks() > 0 ? chunks_of(warp).first - held * warp : 0;
    }
    // Which chunk it is that lies at such a place.
    constexpr int chunk_of_stored(int index) const {
        int warp = 0;
        while (warp + 1 < ROW_WARPS && first_stored(warp + 1) <= index) ++warp;
        return index + held * (warp + 1);
    }

    // What is exchanged, [step % 2][vector][chunk][sequence][unit of the chunk]: the state, as each matrix is
    // multiplied by it, or in the backward pass of each layer a vector of gradients for each gate, and of the
    // second of two GRUs one more. Units beyond the last are zeros.
    constexpr int vectors(bool backward) const {
        if (!backward) return matrices;
        return layers() * gates + (layers() > 1 && gates == 3);
    }
    constexpr int vector_elements() const { return chunks() * batch * chunk; }
    constexpr int64_t exchange_start(int parity, bool backward) const {
        return static_cast<int64_t>(parity) * vectors(backward) * chunks() * batch * chunk;
    }
    constexpr int exchange_offset(int vector, int sequence, int unit) const {
        return vector * vector_elements() + within_vector(chunk, sequence, unit);
    }
    // chunk: that of the schedule, for callers who know it when they are compiled.
    constexpr int within_vector(int chunk, int sequence, int unit) const {
        return (unit / chunk * batch + sequence) * chunk + unit % chunk;
    }
    constexpr int64_t exchange_elements(bool backward) const { return exchange_start(2, backward); }
};

// Where the quad (16 bytes) `quad` of a row of a chunk is in shared memory, in quads. Two rows are a line
// of all 32 banks. In every second line they are swapped: the threads that load at once read a chunk's
// quads of the rows r and r + 2, whatever r is, and these are in different halves of the banks.
constexpr int shard_quad(int row, int quad) {
    return row / 2 * 8 + ((row ^ row / 2) & 1) * 4 + quad;
}

// A product leaves its sums [tile][eight columns][lane][4] as the threads of a warp have them: lane
// 4 · g + t has of the rows 2g and 2g + 1 the columns 2t and 2t + 1.
constexpr int sum_index(int eights, int row, int column) {
    return ((row / 16 * eights + column / 8) * 32 + row % 16 / 2 * 4 + column % 8 / 2) * 4 +
           row % 2 * 2 + column % 2;
}

// ---- what fits a GPU -----------------------------------------------------------------------------

struct RowFit {
    RowSchedule schedule;
    int columns;
    int64_t shared_bytes;
};

// A step multiplies its sequences in so many passes; at most, where a kernel that holds rows in registers
// multiplies fewer at once than fit.
constexpr int64_t passes(const RowFit &fit) {
    const int columns = fit.schedule.held > 0 ? HELD_COLUMNS[0] : fit.columns;
    return (static_cast<int64_t>(fit.schedule.batch) + columns - 1) / columns;
}

// A block's shared memory: its rows of so many chunks, then the partial sums.
constexpr int64_t shard_bytes(const RowSchedule &s, int chunks) {
    return static_cast<int64_t>(chunks) * s.rows() * CHUNK_BYTES;
}
constexpr int64_t shared_bytes(const RowSchedule &s, int columns, bool backward) {
    const int tiles =
        s.held > 0 ? held_at_once(CHUNK_BYTES / s.chunk, backward) : s.all_tiles(backward);
    return shard_bytes(s, s.stored_chunks()) +
           static_cast<int64_t>(PARTIAL_SUMS) * tiles * SIDE * columns * 4;
}

// The workspace: the flags, one for each block and one for all, then what each layer carries from step to
// step as in schedule.h, then what is exchanged, each at a multiple of 256 bytes. The flags are neighbours: a
// warp polls those of neighbouring blocks in one request.
constexpr int64_t row_flag_bytes(const RowSchedule &s) { return (static_cast<int64_t>(s.blocks()) + 1) * 4; }
constexpr int64_t row_carry_start(const RowSchedule &s) { return (row_flag_bytes(s) + 255) / 256 * 256; }
constexpr int64_t exchange_begin(const RowSchedule &s) {
    return row_carry_start(s) +
           (static_cast<int64_t>(s.layers()) * s.batch * s.units * 4 + 255) / 256 * 256;
}
constexpr int64_t workspace_bytes(const RowSchedule &s, bool backward) {
    return exchange_begin(s) +
           s.exchange_elements(backward) / s.chunk * CHUNK_BYTES;
}

// How the rows of a layer, or of two, are distributed over a GPU's multiprocessors and their shared memory;
// false if they do not fit.
//
// A block's time goes with its tiles of 16 rows: it has as few of them as the multiprocessors allow, and
// then as many units as these hold, for each block reads the whole state, and so the fewer the better.
// Of the numbers of sequences multiplied at once that fit, the one that wastes least; among equals the
// largest.
constexpr bool find_shared_fit(int multiprocessors, int64_t shared, int units, int gates, int batch,
                               int weight_bytes, bool backward, RowFit &fit, int matrices) {
    if (tiles_of(units) > MAX_TILES) return false;
    const int least = (units - 1) / multiprocessors + 1;
    const int tiles = (gates * least + static_cast<int>(SIDE) - 1) / static_cast<int>(SIDE);
    const int most = tiles * static_cast<int>(SIDE) / gates;
    int64_t multiplied = 0;
    for (const int columns : ROW_COLUMNS) {
        if (matrices == WAVEFRONT_MATRICES && columns > WAVEFRONT_COLUMNS) break;
        const int64_t all = (static_cast<int64_t>(batch) + columns - 1) / columns * columns;
        if (multiplied > 0 && all > multiplied) continue;
        for (int own = most < units ? most : units; own >= least; --own) {
            const RowSchedule s{units, gates, batch, own, CHUNK_BYTES / weight_bytes, matrices};
            const int64_t bytes = shared_bytes(s, columns, backward);
            if (bytes > shared || s.exchange_elements(backward) > MAX_EXCHANGE) continue;
            fit = {s, columns, bytes};
            multiplied = all;
            break;
        }
    }
    return multiplied > 0;
}

// The same over shared memory and registers. Of the numbers of sequences the one that takes the fewest
// passes; among equals the smallest.
constexpr bool find_held_fit(int multiprocessors, int64_t shared, int units, int gates, int batch,
                             int weight_bytes, bool backward, RowFit &fit) {
    if (tiles_of(units) > MAX_TILES) return false;
    const int least = (units - 1) / multiprocessors + 1, side = static_cast<int>(SIDE);
    const int at_once = held_at_once(weight_bytes, backward);
    const int most = at_once * side / (backward ? 1 : gates);
    int64_t fewest = 0;
    for (const int columns : HELD_COLUMNS) {
        const int64_t passes = (static_cast<int64_t>(batch) + columns - 1) / columns;
        if (fewest > 0 && passes >= fewest) continue;
        for (int own = most < units ? most : units; own >= least; --own) {
            const RowSchedule s{units, gates, batch, own, CHUNK_BYTES / weight_bytes, 1,
                                held_chunks(weight_bytes, backward, gates)};
            const int64_t bytes = shared_bytes(s, columns, backward);
            if (bytes > shared || s.exchange_elements(backward) > MAX_EXCHANGE) continue;
            fit = {s, columns, bytes};
            fewest = passes;
            break;
        }
    }
    return fewest > 0;
}

// In shared memory alone where that is enough. Two layers are never held in registers.
constexpr bool find_row_fit(int multiprocessors, int64_t shared, int units, int gates, int batch,
                            int weight_bytes, bool backward, RowFit &fit, int matrices = 1) {
    return find_shared_fit(multiprocessors, shared, units, gates, batch, weight_bytes, backward, fit,
                           matrices) ||
           (matrices == 1 && find_held_fit(multiprocessors, shared, units, gates, batch, weight_bytes,
                                           backward, fit));
}

// ---- which of the kernels ------------------------------------------------------------------------

// A layer, or two, as one of the kernels runs it.
struct Distribution {
    int kernel;   // not SYMRNN_KERNEL_ANY
    RowFit rows;  // of SYMRNN_KERNEL_ROWS and SYMRNN_KERNEL_WAVEFRONT
    Fit packed;   // of SYMRNN_KERNEL_PACKED
};

constexpr bool is_kernel(int kernel) {
    return kernel >= SYMRNN_KERNEL_ANY && kernel <= SYMRNN_KERNEL_WAVEFRONT;
}

// By rows where they fit, packed else, or as `kernel` wants it; false if it does not fit. A backward pass
// whose rows would be held in registers is packed where that fits: by rows each block reads the gradients of
// all gates and units, and the more there are the dearer that is.
constexpr bool distribute(int kernel, int multiprocessors, int64_t shared_bytes, int units, int gates,
                          int batch, int weight_bytes, bool backward, Distribution &found) {
    if (kernel == SYMRNN_KERNEL_WAVEFRONT) {
        found.kernel = kernel;
        return find_row_fit(multiprocessors, shared_bytes, units, gates, batch, weight_bytes, backward,
                            found.rows, WAVEFRONT_MATRICES);
    }
    const bool rows = kernel != SYMRNN_KERNEL_PACKED &&
                      find_row_fit(multiprocessors, shared_bytes, units, gates, batch, weight_bytes,
                                   backward, found.rows);
    const bool packed_first = !rows || (backward && found.rows.schedule.held > 0);
    if (kernel != SYMRNN_KERNEL_ROWS && packed_first &&
        find_fit(multiprocessors, shared_bytes, units, gates, batch, weight_bytes, backward,
                 found.packed)) {
        found.kernel = SYMRNN_KERNEL_PACKED;
        return true;
    }
    found.kernel = SYMRNN_KERNEL_ROWS;
    return rows;
}

}  // namespace symrnn

#endif
