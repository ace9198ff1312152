from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._custom_types import Count, Scalar
from .._misc import check_count, check_number, squared, unknown_name
from .base import AbstractWeighting, Needs, Pointwise
from .named import check_name_list, check_names, set_of


class _CausalState(eqx.Module):
    level: Count  # place in `eps`
    min_weight: Scalar


class Causal(AbstractWeighting[_CausalState]):
    """What comes later in time counts once what came before is solved.

    Time is cut into chunks of equal length. A point in chunk `i` has the weight
    `w_i = exp(-eps sum_{k<i} L_k)`, with `L_k` the mean of `|r|^2` over the points in
    chunk `k` (zero if there are none), added up over the terms named. Points may come
    in any order and be drawn anew at every step.

    Recorded as `"min_weight/<names>"`: the weight of the last chunk, which is the
    least. Training may stop, or `eps` grow, when it comes close to one.

    **Arguments:**

    - `names`: the terms that are weighted, such as `("interior",)`.
    - `time`: which column of their points is the time.
    - `bounds`: its first and last value. Points outside count to the nearest chunk.
    - `num_chunks`: how many chunks.
    - `eps`: a number, or a tuple of growing ones: the next is taken as soon as all
        weights exceed `threshold`.
    - `threshold`: as said; the authors use 0.99.

    ??? cite "Reference"

        S. Wang, S. Sankaran and P. Perdikaris, "Respecting causality for training
        physics-informed neural networks", Computer Methods in Applied Mechanics and
        Engineering 421, 2024 (arXiv:2203.07404, 2022), equation (14) and algorithm 1.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    time: int = eqx.field(static=True)
    bounds: tuple[int | float, int | float]
    num_chunks: int = eqx.field(static=True, default=16)
    eps: int | float | tuple[int | float, ...] = 1.0
    threshold: int | float = 0.99

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.RESIDUALS})
    every: ClassVar[int] = 1

    def __check_init__(self):
        check_name_list("names", self.names, least=1)
        if isinstance(self.time, bool) or not isinstance(self.time, int):
            raise ValueError(f"`time` must be a column number, got {self.time!r}.")
        check_number("bounds[0]", self.bounds[0])
        check_number("bounds[1]", self.bounds[1], self.bounds[0], open_low=True)
        check_count("num_chunks", self.num_chunks)
        check_number("threshold", self.threshold, 0, 1)
        for eps in self._levels:
            check_number("eps", eps, 0, open_low=True)
        if not self._levels or any(
            a >= b for a, b in zip(self._levels, self._levels[1:], strict=False)
        ):
            raise ValueError(f"`eps` must grow along the tuple, got {self.eps!r}.")

    @property
    def _levels(self) -> tuple[int | float, ...]:
        return self.eps if isinstance(self.eps, tuple) else (self.eps,)

    def init(self, terms):
        if terms:
            check_names(self.names, terms)
        return _CausalState(jnp.zeros((), jnp.int32), jnp.zeros((), float))

    def at_points(self, state, residuals, batch):
        check_names(self.names, residuals)
        chunks = {name: self._chunk(name, residuals, batch) for name in self.names}
        weights = self._chunk_weights(state, residuals, chunks)
        return Pointwise({name: weights[chunks[name]] for name in self.names})

    def metrics(self, state):
        return {"min_weight/" + "+".join(self.names): state.min_weight}

    def update(self, state, observed):
        residuals, batch = observed.residuals, observed.batch
        chunks = {name: self._chunk(name, residuals, batch) for name in self.names}
        least = jnp.min(self._chunk_weights(state, residuals, chunks))
        done = (least > self.threshold).astype(jnp.int32)
        level = jnp.minimum(state.level + done, len(self._levels) - 1)
        return _CausalState(level, least)

    def _chunk_weights(
        self,
        state: _CausalState,
        residuals: dict[str, Array],
        chunks: dict[str, Int[Array, " _points"]],
    ) -> Float[Array, " chunks"]:
        loss = jnp.zeros(self.num_chunks, float)
        for name, chunk in chunks.items():
            square = squared(residuals[name]).astype(float)
            add = lambda x, chunk=chunk: jax.ops.segment_sum(x, chunk, self.num_chunks)
            loss = loss + add(square) / jnp.maximum(add(jnp.ones_like(square)), 1)
        eps = jnp.asarray(self._levels, float)[state.level]
        return jnp.exp(-eps * jnp.cumsum(jnp.roll(loss, 1).at[0].set(0)))

    def _chunk(
        self, name: str, residuals: dict[str, Array], batch: PyTree
    ) -> Int[Array, " _points"]:
        points, size = batch.get(set_of(name)), residuals[name].shape[0]
        if points is None:
            raise ValueError(unknown_name("names", set_of(name), batch))
        columns = points.shape[1] if points.ndim == 2 else 0
        if points.shape[0] != size or not -columns <= self.time < columns:
            raise ValueError(
                f"The points of {name!r} must have a row for each of its {size} "
                f"residuals and a column `time` = {self.time}, got shape "
                f"{points.shape}."
            )
        low, high = self.bounds
        place = (points[:, self.time] - low) / (high - low) * self.num_chunks
        return jnp.clip(jnp.floor(place), 0, self.num_chunks - 1).astype(jnp.int32)
