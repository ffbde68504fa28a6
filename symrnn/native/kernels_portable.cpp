// The kernels for any processor, with vectors of 16 bytes, which the compiler turns into what there is.

#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

namespace symrnn {
namespace portable {

#define SYMRNN_REGISTER_BYTES 16
#define SYMRNN_REGISTERS 16
#include "vectors.h"

#include "kernels.inc.h"

static constexpr Cpu CPU = {"portable", &SINGLE, &PRECISE, read};

}  // namespace portable

const Cpu *cpu_portable() { return &portable::CPU; }

}  // namespace symrnn

