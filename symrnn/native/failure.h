// What went wrong, as a sentence for `symrnn_why`.

#ifndef SYMRNN_FAILURE_H
#define SYMRNN_FAILURE_H

#include <stdarg.h>
#include <stdio.h>

namespace symrnn {

inline thread_local char failure[320] = "";

// Leaves the sentence of this thread's last failure, cut if it is too long; returns the status.
__attribute__((format(printf, 2, 3))) inline int fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    return status;
}

}  // namespace symrnn

#endif
