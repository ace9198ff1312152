"""Weights of learned optimizers in files: plain arrays, and JSON beside them."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .network import check_weights, SHAPES, Weights


SHIPPED = Path(__file__).with_name("weights.npz")


def save_weights(path: str | Path, weights: Weights, provenance: dict[str, Any]):
    """Writes weights, and where they come from, into an `.npz` file without pickles.

    **Raises:** as [`MetaOptimizer`][] does, for what it would not take.
    """
    check_weights(weights)
    arrays = {name: np.asarray(getattr(weights, name)) for name in SHAPES}
    text = np.array(json.dumps(provenance))
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, provenance=text, **arrays)


def load_weights(path: str | Path = SHIPPED) -> Weights:
    """Weights from a file of [`save_weights`][]; those that are shipped, by default.

    **Raises:** `ValueError` for a file that holds something else.
    """
    with np.load(path, allow_pickle=False) as file:
        missing = sorted(set(SHAPES) - set(file.files))
        if missing:
            raise ValueError(
                f"`path` = {str(path)!r} holds no weights of a learned optimizer: "
                f"{missing} are missing. Write such a file with `save_weights`."
            )
        arrays = {name: jnp.asarray(file[name], float) for name in SHAPES}
    weights = Weights(**arrays)
    check_weights(weights)
    return weights


def load_provenance(path: str | Path = SHIPPED) -> dict[str, Any]:
    """What [`save_weights`][] was told about the origin of the weights."""
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["provenance"]))
