import math

from .base import AbstractTransfer


class Chain(AbstractTransfer):
    """Several transfers at once: `Chain(Widen(channels_last=True), PadModes())`.

    Each axis of an array is grown by the first of them that knows how.
    """

    transfers: tuple[AbstractTransfer, ...]

    def __init__(self, *transfers: AbstractTransfer):
        if not transfers:
            raise ValueError("`transfers` is empty; give at least one.")
        self.transfers = transfers

    def axes(self, path, coarse, fine):
        given = [transfer.axes(path, coarse, fine) for transfer in self.transfers]
        pick = lambda maps: next((m for m in maps if m is not None), None)
        return tuple(pick(maps) for maps in zip(*given, strict=True))

    def pairs(self, coarse, fine):
        pairs = {}
        for transfer in self.transfers:
            pairs |= transfer.pairs(coarse, fine)
        return pairs

    def step_ratio(self, coarse, fine):
        return math.prod(t.step_ratio(coarse, fine) for t in self.transfers)
