import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Inexact, Int, PyTree, UInt32

from .._misc import check_count, check_finite
from .._problem.supervised import Pairs
from .base import AbstractSampler


# A narrow network of few rounds favours some pairs of rows, and the narrowest of any:
# both numbers are from a chi-square test of where two rows land.
_ROUNDS = 8
_NARROW = 64
_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio: epochs lie far apart


class Minibatch(AbstractSampler[UInt32[Array, " rounds"], Pairs]):
    """Shuffled batches of a data set, every row once an epoch.

    The batch is a function of the key and the step alone, so a run resumes in the
    middle of an epoch, and chunks need not end where epochs do. The last batch of an
    epoch is filled up with rows that are marked invalid and weigh nothing.

    **Arguments:**

    - `inputs`: an array, or a pytree of arrays, `(rows, ...)`.
    - `targets`: `(rows, ...)`.
    - `batch_size`: rows a batch; more than there are means the full data.
    - `shuffle`: whether to draw a new order every epoch.
    """

    inputs: PyTree[Array]
    targets: Inexact[Array, "rows *out"]
    batch_size: int = eqx.field(static=True)
    shuffle: bool = eqx.field(static=True)

    def __init__(
        self,
        inputs: PyTree[Array],
        targets: Array,
        batch_size: int,
        *,
        shuffle: bool = True,
    ):
        check_count("batch_size", batch_size)
        _check_data(inputs, targets)
        self.inputs = inputs
        self.targets = targets
        self.batch_size = min(batch_size, targets.shape[0])
        self.shuffle = shuffle

    @property
    def num_rows(self) -> int:
        return self.targets.shape[0]

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def init(self, key):
        return jr.bits(key, (_ROUNDS,), jnp.uint32)

    def batch(self, state, key, step):
        del key
        if self.steps_per_epoch == 1 and not self.shuffle:
            return Pairs(self.inputs, self.targets)
        epoch, place = step // self.steps_per_epoch, step % self.steps_per_epoch
        position = place * self.batch_size + jnp.arange(
            self.batch_size, dtype=jnp.int32
        )
        ragged = self.num_rows % self.batch_size
        valid = position < self.num_rows if ragged else None
        # Filled up from the start: copies of real rows, in case the model minds.
        row = position % self.num_rows if ragged else position
        if self.shuffle:
            salts = _mix(state + epoch.astype(jnp.uint32) * _GOLDEN)
            row = permute(row, self.num_rows, salts)
        take = lambda x: jnp.take(x, row, axis=0, mode="clip")
        return Pairs(jtu.tree_map(take, self.inputs), take(self.targets), valid)

    def resample(self, state, problem, model, key):
        del problem, model, key
        return state


def permute(
    index: Int[Array, " n"], size: int, salts: UInt32[Array, " rounds"]
) -> Int[Array, " n"]:
    """The images of `index` under a random permutation of `range(size)`.

    Only the images asked for are computed, so a batch costs the same however large the
    data. A Feistel network permutes the smallest power of two that holds `size`; an
    image outside is permuted again until it lies inside. Few rows are sorted by a hash.

    **Arguments:**

    - `index`: whole numbers below `size`.
    - `size`: how many there are.
    - `salts`: random words, which choose the permutation; an even number of them.

    ??? cite "References"

        M. Luby and C. Rackoff, "How to construct pseudorandom permutations from
        pseudorandom functions", SIAM Journal on Computing 17(2), 1988.
        J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    if size <= _NARROW:
        rows = jnp.arange(size, dtype=jnp.uint32)
        order = jnp.argsort(_mix(_mix(rows ^ salts[0]) ^ salts[1]))
        return order[index].astype(index.dtype)
    bits = (size - 1).bit_length()
    half = bits // 2
    low, high = jnp.uint32(2**half - 1), jnp.uint32(2 ** (bits - half) - 1)

    def network(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
        left, right = x >> half, x & low
        for even, odd in zip(salts[::2], salts[1::2], strict=True):
            left = left ^ (_mix(right ^ even) & high)
            right = right ^ (_mix(left ^ odd) & low)
        return (left << half) | right

    def again(x):
        return jnp.where(x >= size, network(x), x)

    image = network(index.astype(jnp.uint32))
    if 2**bits > size:
        image = jax.lax.while_loop(lambda x: jnp.any(x >= size), again, image)
    return image.astype(index.dtype)


def _mix(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    # The finalizer of MurmurHash3 (A. Appleby, 2011).
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _check_data(inputs: PyTree[Array], targets: Array) -> None:
    if not jnp.issubdtype(targets.dtype, jnp.inexact):
        raise ValueError(
            f"`targets` must be real or complex floats, got dtype {targets.dtype}. "
            "Convert them: `targets.astype(float)`."
        )
    leaves = jtu.tree_leaves_with_path(inputs)
    if not leaves:
        raise ValueError("`inputs` holds no array.")
    for path, leaf in leaves:
        if leaf.ndim == 0 or leaf.shape[0] != targets.shape[0]:
            raise ValueError(
                f"`inputs{jtu.keystr(path)}` and `targets` must have as many rows, got "
                f"shapes {leaf.shape} and {targets.shape}."
            )
    check_finite("inputs", inputs)
    check_finite("targets", targets)
