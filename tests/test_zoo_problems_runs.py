"""A few steps on the problems of space, one of each kind."""

import numpy as np
import pytest

from opifex.zoo.run import Config, run


@pytest.mark.parametrize("name", ["poisson-disc", "kovasznay", "poisson-10d"])
def test_a_short_run(name, tmp_path):
    config = Config(name, 20, 0, 1, "fixed", "adam", "float64")
    figures = run(config, tmp_path, quiet=True)
    assert figures["result"] == "successful" and figures["steps"] == 20
    assert np.isfinite(figures["rel_l2"]) and figures["n_params"] < 1000
