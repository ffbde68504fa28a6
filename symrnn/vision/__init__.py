"""Image networks with symmetric, shared and Dirac weights: the symmetry core at work in vision.

>>> from symrnn.vision import create_model
>>> model = create_model("wrn-16-1-bottleneck", symm="tri")
"""

import symrnn.vision.card  # noqa: F401  (registers how networks are saved and loaded)
from symrnn.vision.inference import fold_for_inference
from symrnn.vision.models.network import Network
from symrnn.vision.registry import create_model, default_where, list_models

from_pretrained = Network.from_pretrained  # of whichever class is in the folder

__all__ = ["create_model", "default_where", "fold_for_inference", "from_pretrained", "list_models"]
