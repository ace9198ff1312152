import equinox as eqx

from ._axis import AxisMap, pad
from .base import AbstractTransfer


class PadModes(AbstractTransfer):
    """More modes in Fourier layers, in one, two or three dimensions.

    The weights of the new modes are zero, so the function is unchanged on every grid
    that holds them; their gradient is not. Moments of second order begin at the mean of
    the layer: from zero, the first steps would be as long as the optimizer takes any.

    The spectral weights are those of [`FNO`][], `(2, *frequencies, in, out)`: the
    frequencies of the last axis begin at zero, those of every other are symmetric
    about it.

    **Arguments:**

    - `before`, `after`: how many axes of a spectral weight come before the frequencies
        and after them.
    """

    before: int = eqx.field(static=True, default=1)
    after: int = eqx.field(static=True, default=2)

    def axes(self, path, coarse, fine):
        first, last = self.before, len(fine) - self.after - 1
        maps: list[AxisMap | None] = [None] * len(fine)
        for i in range(first, last + 1):
            if coarse[i] == fine[i]:
                continue
            if i < last and (coarse[i] % 2 == 0 or fine[i] % 2 == 0):
                raise ValueError(
                    f"`{path}` has {coarse[i]} frequencies along axis {i} in the "
                    f"coarse model and {fine[i]} in the fine one. Both must be odd, to "
                    "be symmetric about zero: see the layout that `PadModes` expects."
                )
            offset = (fine[i] - coarse[i]) // 2 if i < last else 0
            maps[i] = pad(coarse[i], fine[i], offset)
        return tuple(maps)

    def pairs(self, coarse, fine):
        del coarse, fine
        return {}

    def step_ratio(self, coarse, fine):
        del coarse, fine
        return 1.0
