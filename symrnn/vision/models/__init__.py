"""The networks, one file per family: plain modules, which know of neither symmetry nor sharing."""
