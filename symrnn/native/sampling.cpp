// Drawing tokens as lm/sampling.py does, by the generator that torch has.

#include <math.h>
#include <string.h>

#include <algorithm>

#include "cpu.h"
#include "failure.h"
#include "scratch.h"
#include "symrnn_runtime.h"

namespace symrnn {
namespace {

// The likeliest of some weights from 0 to 1, found without sorting all: weights are counted by
// their size, in buckets of which 32 make a factor of two, and only the bucket in which the limit
// falls is sorted.
class Cut {
  public:
    // ids: (n), scratch memory.
    Cut(int64_t n, double *weights, int32_t *ids) : n_(n), weights_(weights), ids_(ids) {}

    // Sets all weights but the `count` largest to 0; of equal ones the first stay.
    void to_count(int64_t count) {
        int64_t counts[BUCKETS] = {};
        for (int64_t k = 0; k < n_; ++k) ++counts[bucket(weights_[k])];
        int b = 0;
        for (; b < BUCKETS - 1 && counts[b] < count; ++b) count -= counts[b];
        remove(b, [&](double) { return count-- > 0; });
    }

    // Sets all but the fewest of the largest that sum to at least this share of the sum to 0.
    void to_share(double share) {
        double sums[BUCKETS] = {}, all = 0, before = 0;
        for (int64_t k = 0; k < n_; ++k) sums[bucket(weights_[k])] += weights_[k];
        for (const double sum : sums) all += sum;
        const double wanted = share * all;
        int b = 0;
        for (; b < BUCKETS - 1 && before + sums[b] < wanted; ++b) before += sums[b];
        remove(b, [&](double weight) {
            const bool stays = before < wanted;
            before += weight;
            return stays;
        });
    }

  private:
    static constexpr int BUCKETS = 2048;

    static int bucket(double weight) {
        constexpr int64_t ONE = 0x3ff0000000000000;
        int64_t bits;
        memcpy(&bits, &weight, sizeof bits);
        return static_cast<int>(std::min(int64_t(BUCKETS - 1), (ONE - bits) >> 47));
    }

    // Removes later buckets, and of bucket b, from the largest weight on, what does not stay.
    template <typename Stays>
    void remove(int b, const Stays &stays) {
        int64_t count = 0;
        for (int64_t k = 0; k < n_; ++k) {  // without a branch, which could not be predicted
            const int own = bucket(weights_[k]);
            weights_[k] = own > b ? 0 : weights_[k];
            ids_[count] = static_cast<int32_t>(k);
            count += own == b;
        }
        std::sort(ids_, ids_ + count, [&](int32_t i, int32_t j) {
            return weights_[i] != weights_[j] ? weights_[i] > weights_[j] : i < j;
        });
        for (int64_t k = 0; k < count; ++k)
            if (!stays(weights_[ids_[k]])) weights_[ids_[k]] = 0;
    }

    const int64_t n_;
    double *const weights_;
    int32_t *const ids_;
};

// The first of n weights whose sum with all before rises above this share of the sum.
int64_t find(int64_t n, const double *weights, double share) {
    constexpr int64_t RUN = 64;
    const auto sum_of_run = [&](int64_t first) {
        double sum[4] = {};
        const int64_t last = std::min(n, first + RUN);
        int64_t k = first;
        for (; k + 4 <= last; k += 4)
            for (int i = 0; i < 4; ++i) sum[i] += weights[k + i];
        for (; k < last; ++k) sum[0] += weights[k];
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    };
    double all = 0, height = 0;
    for (int64_t k = 0; k < n; k += RUN) all += sum_of_run(k);
    const double place = share * all;
    int64_t found = 0;
    for (int64_t k = 0; k < n; k += RUN) {
        const double sum = sum_of_run(k);
        if (height + sum <= place) {
            height += sum;
            continue;
        }
        for (int64_t i = k; i < std::min(n, k + RUN); ++i) {
            height += weights[i];
            if (weights[i] > 0) found = i;
            if (height > place) return found;
        }
    }
    for (int64_t k = 0; k < n; ++k)  // rounding: the last that can be drawn
        if (weights[k] > 0) found = k;
    return found;
}

}  // namespace
}  // namespace symrnn

using namespace symrnn;

void symrnn_seed(symrnn_generator *generator, uint32_t seed) {
    uint32_t *const state = generator->state;
    state[0] = seed;
    for (uint32_t k = 1; k < 624; ++k)
        state[k] = 1812433253u * (state[k - 1] ^ state[k - 1] >> 30) + k;
    generator->next = 624;
}

namespace {

uint32_t next_word(symrnn_generator &generator) {
    uint32_t *const state = generator.state;
    if (generator.next < 0 || generator.next >= 624) {
        for (int k = 0; k < 624; ++k) {
            const uint32_t both = (state[k] & 0x80000000u) | (state[(k + 1) % 624] & 0x7fffffffu);
            state[k] = state[(k + 397) % 624] ^ both >> 1 ^ (both & 1 ? 0x9908b0dfu : 0);
        }
        generator.next = 0;
    }
    uint32_t word = state[generator.next++];
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680u;
    word ^= word << 15 & 0xefc60000u;
    return word ^ word >> 18;
}

}  // namespace

double symrnn_uniform(symrnn_generator *generator) {
    const uint64_t high = next_word(*generator), low = next_word(*generator);
    return static_cast<double>((high << 32 | low) & ((uint64_t(1) << 53) - 1)) * 0x1p-53;
}

int symrnn_draw(int64_t n, const float *logits, symrnn_generator *generator, double temperature,
                int64_t top_k, double top_p, int32_t *token) {
    if (!logits || !token || (!generator && temperature != 0))
        return fail(SYMRNN_NULL, "logits, generator and token should not be null");
    if (n < 1 || n > INT32_MAX)
        return fail(SYMRNN_SIZE, "n should be from 1 to %d, got: %lld", INT32_MAX,
                    static_cast<long long>(n));
    if (!(temperature >= 0 && temperature <= 1.7e308))
        return fail(SYMRNN_SIZE, "temperature should be finite and at least 0, got: %g",
                    temperature);
    if (top_k < 0)
        return fail(SYMRNN_SIZE, "top_k should be at least 0, got: %lld",
                    static_cast<long long>(top_k));
    if (!(top_p > 0 && top_p <= 1))
        return fail(SYMRNN_SIZE, "top_p should be above 0 and at most 1, got: %g", top_p);
    const float highest = cpu().largest(n, logits);
    if (!isfinite(highest))
        return fail(SYMRNN_LOGITS, "the largest logit is %s; there is no next token",
                    isnan(highest) ? "nan" : highest > 0 ? "inf" : "-inf");
    if (temperature == 0) {
        *token = static_cast<int32_t>(std::find(logits, logits + n, highest) - logits);
        return SYMRNN_OK;
    }
    double *weights = nullptr;
    int32_t *ids = nullptr;
    Arena arena;
    arena.reserve(weights, n);
    arena.reserve(ids, n);
    if (!arena.allocate()) return fail(SYMRNN_MEMORY, "out of memory");
    // Finite, so that the highest, whose difference is 0, has the weight 1 at any temperature.
    cpu().weigh(n, logits, highest, std::min(1 / temperature, 1.7e308), weights);
    Cut likeliest(n, weights, ids);
    if (top_k > 0 && top_k < n) likeliest.to_count(top_k);
    if (top_p < 1) likeliest.to_share(top_p);
    *token = static_cast<int32_t>(find(n, weights, symrnn_uniform(generator)));
    scratch.trim();
    return SYMRNN_OK;
}
