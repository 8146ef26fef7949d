"""A featurizer that costs next to nothing, so that what is measured is the engine: mean colour of a 224-pixel crop.

Importing this package adds its folder to `featurizers`. A CheapSpec does that in Spark's workers too, which import
this package to unpickle it.
"""

from __future__ import annotations

from pathlib import Path

import featurizers
from featurizers.spec import FeaturizerSpec

HERE = str(Path(__file__).parent)
if HERE not in featurizers.__path__:
    featurizers.__path__.append(HERE)


class CheapSpec(FeaturizerSpec):
    """The spec of a featurizer of this folder."""
