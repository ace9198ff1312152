import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree


class Precision(eqx.Module):
    """In which precision the loss is computed.

    Parameters, gradients and the optimizer keep theirs. Parameters and batch are cast
    to `compute` before the problem sees them (complex ones to the complex type of that
    width), and its terms are cast to `output`, in which they are weighted and summed.

    **Arguments:**

    - `compute`: a float dtype, or `None` to compute in that of the parameters.
    - `output`: a float dtype of the loss, or `None` to leave it as it comes.
    - `loss_scale`: the loss is multiplied by it before differentiation and the gradient
        divided by it after, which keeps small float16 gradients from vanishing
        (P. Micikevicius et al., "Mixed precision training", ICLR 2018).
    """

    compute: str | None = eqx.field(static=True)
    output: str | None = eqx.field(static=True)
    loss_scale: float = eqx.field(static=True)

    def __init__(self, compute=None, output=None, loss_scale: float = 1.0):
        self.compute = _float_name("compute", compute)
        self.output = _float_name("output", output)
        if not 0 < loss_scale < float("inf"):
            raise ValueError(f"`loss_scale` must be positive, got {loss_scale!r}.")
        self.loss_scale = float(loss_scale)

    def to_compute(self, tree: PyTree) -> PyTree:
        return _cast(tree, self.compute)

    def to_output(self, tree: PyTree) -> PyTree:
        return _cast(tree, self.output)


def _float_name(argument: str, dtype) -> str | None:
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{argument}` must be a float dtype, got {dtype}.")
    return dtype.name


def _cast(tree: PyTree, name: str | None) -> PyTree:
    if name is None:
        return tree
    real = jnp.dtype(name)
    # JAX has no complex type narrower than two float32.
    wide = jnp.dtype("complex128" if name == "float64" else "complex64")

    def cast(x):
        if not eqx.is_inexact_array(x):
            return x
        return x.astype(wide if jnp.iscomplexobj(x) else real)

    return jtu.tree_map(cast, tree)
