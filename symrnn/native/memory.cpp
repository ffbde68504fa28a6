// Huge pages for what is read whole at every step.

#include "symrnn.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr uintptr_t HUGE_PAGE = uintptr_t(1) << 21;  // on x86-64, and on ARM with pages of 4 KiB
[[maybe_unused]] constexpr int COLLAPSE = 25;        // MADV_COLLAPSE, of Linux 6.1

}  // namespace

void symrnn_prefer_huge_pages(const void *from, int64_t bytes, int now) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t begin = reinterpret_cast<uintptr_t>(from);
    const uintptr_t first = (begin + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) / HUGE_PAGE * HUGE_PAGE;
    if (bytes <= 0 || first >= last) return;
    madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
    if (now) madvise(reinterpret_cast<void *>(first), last - first, COLLAPSE);
#else
    (void)from, (void)bytes, (void)now;
#endif
}
