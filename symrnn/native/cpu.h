// The kernels in use.

#ifndef SYMRNN_CPU_H
#define SYMRNN_CPU_H

#include "kernels.h"

namespace symrnn {

const Cpu &cpu();
bool use_cpu(const char *name);  // whether it can

}  // namespace symrnn

#endif
