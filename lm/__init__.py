"""Language modelling with symmetric recurrent weights: train, evaluate, generate."""

import lm.card  # noqa: F401  (registers how language models are saved and loaded)
