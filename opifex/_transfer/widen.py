import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._axis import split
from .base import AbstractTransfer, arrays_of


class Widen(AbstractTransfer):
    """More units in the hidden layers of a network of dense layers.

    A unit becomes several that compute the same; the weights by which the next layer
    reads it are shared among them, unequally, so that their gradients differ from the
    first step on and they part. For that, wherever the two models differ in size, rows
    of weights and biases are copied and columns divided. It holds for any network of
    dense layers with elementwise functions between them, skip connections and gates
    included, whatever the depth.

    With Adam the weights of each of `r` copies take steps as long as those of the
    unit, so the function would change `r` times as fast; [`prolongate`][] shortens the
    steps accordingly.

    **Arguments:**

    - `channels_last`: whether the last two axes of a weight are its inputs and outputs,
        whatever comes before, as in [`FNO`][] and Flax; and not, in a matrix, its
        outputs and inputs, as in Equinox.

    ??? cite "Reference"

        T. Chen, I. Goodfellow and J. Shlens, "Net2Net: accelerating learning via
        knowledge transfer", ICLR 2016, section 2.3.
    """

    channels_last: bool = eqx.field(static=True, default=False)

    def axes(self, path, coarse, fine):
        places = (-1, -2) if self.channels_last else (0, 1)
        ndim = len(fine)
        if ndim > 2 and not self.channels_last:
            return (None,) * ndim
        out = places[0] % ndim
        inside = places[1] % ndim if ndim > 1 else None
        sizes = enumerate(zip(coarse, fine, strict=True))
        return tuple(
            split(c, f, outgoing=i == inside) if c < f and i in (out, inside) else None
            for i, (c, f) in sizes
        )

    def pairs(self, coarse, fine):
        _check_dense(coarse, fine)
        return {}

    def step_ratio(self, coarse, fine):
        have, ratio = arrays_of(coarse), 1.0
        for path, array in arrays_of(fine).items():
            if path not in have or len(have[path].shape) != len(array.shape):
                continue
            maps = self.axes(path, have[path].shape, array.shape)
            for m in maps:
                if m is not None:
                    ratio = min(ratio, len(m.first) / len(m.index))
        return ratio


# Those that mix the units in another way than by a matrix, or keep their arrays in
# another order.
_MIXING = (
    eqx.nn.LayerNorm,
    eqx.nn.RMSNorm,
    eqx.nn.GroupNorm,
    eqx.nn.BatchNorm,
    eqx.nn.SpectralNorm,
    eqx.nn.WeightNorm,
    eqx.nn.MultiheadAttention,
    eqx.nn.GRUCell,
    eqx.nn.LSTMCell,
    eqx.nn.PReLU,
    eqx.nn.Embedding,
)


def _mixing(tree: PyTree) -> dict[str, tuple[str, list[tuple[int, ...]]]]:
    """The kind and the shapes of each such layer, by path."""
    is_mixing = lambda x: isinstance(x, _MIXING)
    nodes = jtu.tree_leaves_with_path(tree, is_leaf=is_mixing)
    return {
        jtu.keystr(path): (type(x).__name__, [a.shape for a in arrays_of(x).values()])
        for path, x in nodes
        if is_mixing(x)
    }


def _check_dense(coarse: PyTree, fine: PyTree) -> None:
    have, want = _mixing(coarse), _mixing(fine)
    for path in have.keys() & want.keys():
        if have[path] != want[path]:
            raise ValueError(
                f"`{path}` is a `{want[path][0]}` with arrays {have[path][1]} in the "
                f"coarse model and {want[path][1]} in the fine one. `Widen` splits "
                "units, which only dense layers and elementwise functions allow: give "
                "both models the same size there."
            )
