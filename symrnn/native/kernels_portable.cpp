// The kernels for any processor: vectors of 16 bytes, which the compiler maps to what it has.

#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

namespace symrnn {
namespace portable {

#define SYMRNN_REGISTER_BYTES 16
#define SYMRNN_REGISTERS 16
#include "vectors.h"

#include "many.inc.h"

#include "kernels.inc.h"

#include "sampling.inc.h"

#include "dot.h"

#include "int8.inc.h"

static constexpr Cpu CPU = {"portable", &FLOAT32, &FLOAT64, &INT8, nullptr, read, largest, weigh};

}  // namespace portable

const Cpu *cpu_portable() { return &portable::CPU; }

}  // namespace symrnn

