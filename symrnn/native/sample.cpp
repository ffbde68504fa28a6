// A few numbers of some arrays, to see whether somebody wrote to them.

#include <string.h>

#include "symrnn.h"

namespace {

constexpr int64_t SAMPLES = 16;  // of an array, each of 4 bytes

// FNV-1a, word by word.
uint64_t mixed(uint64_t hash, uint32_t word) { return (hash ^ word) * 0x100000001b3u; }

}  // namespace

uint64_t symrnn_sample(int64_t count, const void *const *arrays, const int64_t *bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int64_t n = 0; n < count; ++n) {
        const char *const array = static_cast<const char *>(arrays[n]);
        const int64_t words = bytes[n] / 4, samples = words < SAMPLES ? words : SAMPLES;
        for (int64_t k = 0; k < samples; ++k) {
            // One in each 16th, at places that the golden ratio scatters: of a matrix they lie in
            // many rows and many columns.
            const int64_t first = words * k / samples, next = words * (k + 1) / samples;
            const uint64_t fraction = (k + 1) * 0x9e3779b97f4a7c15u >> 33;  // of 2^31
            const int64_t at = first + static_cast<int64_t>(fraction * (next - first) >> 31);
            uint32_t word;
            memcpy(&word, array + 4 * at, 4);
            hash = mixed(hash, word);
        }
    }
    return hash;
}
