"""The native kernels as a backend: packed weights, all steps of a layer in one call."""
