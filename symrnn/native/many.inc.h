// Products of packed tiles and many vectors: tiles stay in L1, and are transposed there where needed.
// Included once for each processor, after vectors.h and inside its namespace.
//
// A Kind says what is multiplied, and how. Tile, Vector and Sum are the types of the numbers; MOST
// vectors have their sums in registers; outer(tile, x, sum) does sum[b] += tile · x[b]; and
// transpose_tile(from, to) transposes a tile.
//
// `fixed` is the tile of the blocked vector that belongs to the panel, `moving` the one that belongs
// to each tile in it. A symmetric panel is a column of tiles M: y[moving] += M · x[fixed] and
// y[fixed] += Mᵀ · x[moving]; of a tile of a free block the first alone or, transposed, the second. A
// full panel is a row of tiles: y[fixed] += M · x[moving] or, transposed, y[moving] += Mᵀ · x[fixed].

// y[moving] += tile · x[fixed] for each tile.
template <typename Kind, int batch>
static void many_to_moving(const typename Kind::Tile *tile, int64_t tiles, int64_t stride,
                           const typename Kind::Vector *x, typename Kind::Sum *y) {
    for (int64_t q = 0; q < tiles; ++q, tile += TILE, y += stride) {
        Block<typename Kind::Sum> sum[batch];
        UNROLLED for (int b = 0; b < batch; ++b) sum[b] = load(y + 16 * b);
        Kind::template outer<batch>(tile, x, sum);
        UNROLLED for (int b = 0; b < batch; ++b) store(y + 16 * b, sum[b]);
    }
}

// y[fixed] += Σ tile · x[moving] over the tiles.
template <typename Kind, int batch>
static void many_to_fixed(const typename Kind::Tile *tile, int64_t tiles, int64_t stride,
                          const typename Kind::Vector *x, typename Kind::Sum *y) {
    Block<typename Kind::Sum> sum[batch];
    UNROLLED for (int b = 0; b < batch; ++b) sum[b] = load(y + 16 * b);
    for (int64_t q = 0; q < tiles; ++q, tile += TILE, x += stride)
        Kind::template outer<batch>(tile, x, sum);
    UNROLLED for (int b = 0; b < batch; ++b) store(y + 16 * b, sum[b]);
}

template <typename Kind>
using Many = void (*)(const typename Kind::Tile *tile, int64_t tiles, int64_t stride,
                      const typename Kind::Vector *x, typename Kind::Sum *y);

template <typename Kind>
struct ManyTable {
    Many<Kind> to_moving[Kind::MOST + 1], to_fixed[Kind::MOST + 1];

    template <int batch>
    constexpr void fill() {
        to_moving[batch] = many_to_moving<Kind, batch>;
        to_fixed[batch] = many_to_fixed<Kind, batch>;
        if constexpr (batch > 1) fill<batch - 1>();
    }
    constexpr ManyTable() : to_moving(), to_fixed() { fill<Kind::MOST>(); }
};

template <typename Kind>
static constexpr ManyTable<Kind> MANY{};

// All vectors in passes of about equal size.
template <typename Kind>
INLINE void many(const Many<Kind> *table, const typename Kind::Tile *tile, int64_t tiles,
                 int64_t batch, int64_t stride, const typename Kind::Vector *x,
                 typename Kind::Sum *y) {
    const int64_t times = (batch + Kind::MOST - 1) / Kind::MOST;
    for (int64_t n = 0; n < times; ++n) {
        const int64_t first = batch * n / times, last = batch * (n + 1) / times;
        table[last - first](tile, tiles, stride, x + 16 * first, y + 16 * first);
    }
}

// S: the type that the tiles are stored in.
template <typename Kind, typename S>
static void many_panel(const Multiplication &m, const S *tile, const Panel &panel,
                       const typename Kind::Vector *x, typename Kind::Sum *y) {
    typedef typename Kind::Tile Tile;
    constexpr int64_t L1_TILES = 8192 / (TILE * static_cast<int64_t>(sizeof(Tile)));
    alignas(64) Tile widened_tiles[sizeof(S) == sizeof(Tile) ? 1 : L1_TILES * TILE];
    alignas(64) Tile stored_t[L1_TILES * TILE];
    const int64_t home = panel.index * m.stride;
    int64_t q = panel.first;  // the index of `moving`
    while (q < panel.last) {
        // The tiles of a free block by themselves: they serve one direction.
        const bool free = m.symmetric && q < panel.mirrored;
        const int64_t end = free ? panel.mirrored : panel.last;
        const int64_t some = end - q < L1_TILES ? end - q : L1_TILES;
        // These reads come in bursts too short for the hardware prefetcher.
        for (int64_t k = 0; m.prefetch && k < L1_TILES * TILE * static_cast<int64_t>(sizeof(S)); k += 64)
            __builtin_prefetch(reinterpret_cast<const char *>(tile + some * TILE) + k, 0, 2);
        const Tile *const stored = widened(tile, some, widened_tiles);
        const bool both = m.symmetric && !free;
        if (m.transposed || both)
            for (int64_t k = 0; k < some; ++k)
                Kind::transpose_tile(stored + k * TILE, stored_t + k * TILE);
        const int64_t there = q * m.stride;
        const auto to_moving = [&](const Tile *tiles) {
            many<Kind>(MANY<Kind>.to_moving, tiles, some, m.batch, m.stride, x + home, y + there);
        };
        const auto to_fixed = [&](const Tile *tiles) {
            many<Kind>(MANY<Kind>.to_fixed, tiles, some, m.batch, m.stride, x + there, y + home);
        };
        if (both || (free && !m.transposed)) to_moving(stored);
        if (both || (free && m.transposed)) to_fixed(stored_t);
        if (!m.symmetric && !m.transposed) to_fixed(stored);
        if (!m.symmetric && m.transposed) to_moving(stored_t);
        tile += some * TILE;
        q += some;
    }
}
