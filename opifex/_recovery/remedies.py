import enum


class Remedy(enum.Enum):
    """What a way back to known-good ground does besides, so that the same fault does
    not come again."""

    CLIP = "the bound of the gradient norm is lowered"
    SHORTEN = "the steps are shortened"
    REDRAW = "parameters are partly drawn anew"
