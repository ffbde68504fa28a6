// The kernels in use.

#ifndef SYMRNN_CPU_H
#define SYMRNN_CPU_H

#include "kernels.h"

namespace symrnn {

const Cpu &cpu();
bool use_cpu(const char *name);  // whether it can

// How many tiles ahead a product with few vectors prefetches on this make of processor, where its
// matrices exceed L2; 0 for not.
int tiles_ahead();

}  // namespace symrnn

#endif
