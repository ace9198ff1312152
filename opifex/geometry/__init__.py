from .base import AbstractDomain as AbstractDomain
from .box import Box as Box
