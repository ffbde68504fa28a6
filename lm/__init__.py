"""Language modelling with symmetric recurrent weights: train, evaluate, generate."""
