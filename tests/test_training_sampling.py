"""The documented door `opifex.training.adaptive_sampling`."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from opifex.training.adaptive_sampling import (
    compute_sampling_distribution,
    RADConfig,
    RADSampler,
    RARDConfig,
    RARDRefiner,
    reflected,
)


R = jnp.array([0.5, -2.0, 0.0, 1.0, 4.0])
BOUNDS = jnp.array([[0.0, 1.0], [-2.0, 4.0]])


@pytest.mark.parametrize("beta", [0, 0.5, 1.0, 2.0])
def test_distribution(beta):
    expected = np.abs(R) ** beta / np.sum(np.abs(R) ** beta)
    plain = lambda r: compute_sampling_distribution(r, beta, 0.0)
    for run in (plain, jax.jit(plain)):
        np.testing.assert_allclose(run(R), expected, atol=1e-15)
    floored = compute_sampling_distribution(R, beta, min_probability=0.05)
    assert floored.min() >= 0.05
    np.testing.assert_allclose(floored.sum(), 1, rtol=1e-14)
    above = np.asarray(floored > 0.05 + 1e-9)
    ratio = np.asarray(floored)[above] / expected[above]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_distribution_at_the_limits(dtype):
    huge = jnp.finfo(dtype).max / 2
    for r, expected in (
        ([0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]),
        ([huge, huge, 0, 0], [0.5, 0.5, 0, 0]),
        ([jnp.inf, 3, 3, 0], [1 / 3, 1 / 3, 1 / 3, 0]),
        ([1e-30, 3e-30, 0, 0], [0.25, 0.75, 0, 0]),
    ):
        p = compute_sampling_distribution(jnp.array(r, dtype))
        assert p.dtype == dtype and jnp.all(p >= 1e-6)
        np.testing.assert_allclose(p, expected, atol=5e-6)
    bad = jnp.array([1.0, jnp.nan, 3.0], dtype)
    with pytest.raises(ValueError, match="`residuals` holds NaN, first in row 1"):
        compute_sampling_distribution(bad)
    inside = jax.jit(compute_sampling_distribution)(bad)
    np.testing.assert_allclose(inside, [1 / 7, 3 / 7, 3 / 7], rtol=1e-5)
    # Many points and a floor that is just feasible.
    n = 1000
    p = compute_sampling_distribution(jnp.arange(n).astype(dtype), 4.0, 1 / n)
    np.testing.assert_allclose(p, 1 / n, rtol=1e-5)


def test_sampler_settings():
    size = np.abs(np.asarray(R))
    published = lambda k, c: size**k / np.mean(size**k) + c
    for config, density in (
        (None, size),
        (RADConfig(beta=2.0), size**2),
        (RADConfig(k=2.0), published(2, 1)),
        (RADConfig(c=0.5), published(1, 0.5)),
        (RADConfig(k=0.5, c=2.0, temperature=2.0), np.sqrt(published(0.5, 2))),
    ):
        weights = RADSampler(config).compute_weights(R)
        np.testing.assert_allclose(weights, density / density.sum(), atol=2e-6)
    sampler = RADSampler(RADConfig(resample_frequency=50))
    assert [s for s in range(120) if sampler.is_due(s)] == [50, 100]


def test_samples():
    points = jnp.stack([jnp.arange(5.0), -jnp.arange(5.0)], axis=1)
    sampler = RADSampler(RADConfig(min_probability=0.1))
    draw = lambda key, num: sampler.sample(points, R, num, key)
    one = jax.jit(jax.vmap(lambda key: draw(key, 1)[0, 0]))(jr.split(jr.key(0), 20000))
    counts = np.bincount(np.asarray(one).astype(int), minlength=5)
    assert stats.chisquare(counts, 20000 * sampler.compute_weights(R)).pvalue > 1e-3
    three = draw(jr.key(1), 3)
    assert three.shape == (3, 2) and len(np.unique(three[:, 0])) == 3
    np.testing.assert_array_equal(three[:, 1], -three[:, 0])
    np.testing.assert_array_equal(draw(jr.key(1), 3), three)
    np.testing.assert_array_equal(np.sort(draw(jr.key(2), 5)[:, 0]), np.arange(5))


def test_reflection():
    x = jnp.array([[-0.25, 4.5], [1.5, -2.5], [2.25, 10.5], [-1.5, 0.0], [1.0, -2.0]])
    expected = [[0.25, 3.5], [0.5, -1.5], [0.25, -1.5], [0.5, 0.0], [1.0, -2.0]]
    np.testing.assert_allclose(reflected(x, BOUNDS), expected, atol=1e-14)
    flat = reflected(x, jnp.array([[0.0, 1.0], [3.0, 3.0]]))
    np.testing.assert_array_equal(flat[:, 1], 3.0)
    # Uniform points stay uniform.
    wide = jr.uniform(jr.key(0), (5000, 2), float, -1.0, 2.0)
    unit = reflected(wide, jnp.array([[0.0, 1.0], [0.0, 1.0]]))
    assert all(stats.kstest(np.asarray(c), "uniform").pvalue > 1e-3 for c in unit.T)


@pytest.mark.parametrize("jit", [False, True])
def test_refinement(jit):
    refiner = RARDRefiner(RARDConfig(num_new_points=400, noise_scale=0.02))
    points = jr.uniform(jr.key(0), (200, 2)) * (BOUNDS[:, 1] - BOUNDS[:, 0])[None]
    points = points + BOUNDS[None, :, 0]
    # Large on the lower edge of the first coordinate.
    residuals = jnp.exp(-10 * points[:, 0])
    refine = jax.jit(refiner.refine) if jit else refiner.refine
    out = refine(points, residuals, BOUNDS, jr.key(1))
    assert out.shape == (600, 2)
    np.testing.assert_array_equal(out[:200], points)
    new = np.asarray(out[200:])
    # Inside, and none on the edge.
    assert np.all((new > np.asarray(BOUNDS[:, 0])) & (new < np.asarray(BOUNDS[:, 1])))
    region = refiner.identify_refinement_regions(residuals)
    assert int(region.sum()) == 20
    assert float(residuals[region].min()) > float(residuals[~region].max())
    near = np.abs(new[:, None] - np.asarray(points[region])[None]) / np.array(
        [1.0, 6.0]
    )
    assert np.all(near.max(-1).min(1) < 5 * 0.02)
    assert len(np.unique(new, axis=0)) == 400


def test_regions():
    regions = RARDRefiner(
        RARDConfig(percentile_threshold=50)
    ).identify_refinement_regions
    np.testing.assert_array_equal(regions(R), [False, True, False, True, True])
    for q, flags in ((100, [0, 0, 0, 0, 1]), (0, [1, 1, 1, 1, 1])):
        refiner = RARDRefiner(RARDConfig(percentile_threshold=q))
        found = refiner.identify_refinement_regions(R)
        np.testing.assert_array_equal(found, np.array(flags, bool))
    assert regions(jnp.zeros(3)).all() and regions([1, 1, 1]).all()


def test_configs_are_what_is_documented():
    fields = {f.name: f.default for f in dataclasses.fields(RADConfig)}
    assert fields == {
        "beta": 1.0,
        "resample_frequency": 100,
        "min_probability": 1e-6,
        "temperature": 1.0,
        "k": None,
        "c": None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        RARDConfig().noise_scale = 1.0  # type: ignore[misc]
    fields = {f.name: f.default for f in dataclasses.fields(RARDConfig)}
    assert fields == {
        "num_new_points": 10,
        "percentile_threshold": 90.0,
        "noise_scale": 0.1,
    }


P = jnp.zeros((5, 2))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: compute_sampling_distribution(R, -1.0), "`beta`.*-1.0"),
        (lambda: compute_sampling_distribution(R, float("nan")), "`beta`.*nan"),
        (
            lambda: compute_sampling_distribution(R, 1, 0.3),
            "`min_prob.* 0.3 .* 5 .*0.2",
        ),
        (lambda: compute_sampling_distribution(R, 1, -0.3), "`min_probability`.*-0.3"),
        (lambda: compute_sampling_distribution(R[:, None]), r"`residuals`.*\(5, 1\)"),
        (lambda: compute_sampling_distribution(jnp.zeros(0)), r"`residuals`.*\(0,\)"),
        (lambda: RADConfig(temprature=2.0), "'temprature'.*mean 'temperature'"),  # type: ignore
        (lambda: RADConfig(temperature=0.0), "`temperature`.*0.0"),
        (lambda: RADConfig(resample_frequency=0), "`resample_frequency`.*0"),
        (lambda: RADConfig(beta=2.0, k=1.0), "`beta` = 2.0.*k=1.0"),
        (lambda: RADConfig(k=-1.0), "`k` and `c`.*k=-1.0"),
        (lambda: RADConfig(min_probability=2.0), "`min_probability`.*2.0"),
        (lambda: RADSampler().sample(P, R, 6, jr.key(0)), "`batch_size` is 6.*5 rows"),
        (lambda: RADSampler().sample(P, R, 0, jr.key(0)), "`batch_size`.*0"),
        (
            lambda: RADSampler().sample(P, R[1:], 2, jr.key(0)),
            "`domain_points`.*5 and 4",
        ),
        (
            lambda: RADSampler().sample(P[:, 0], R, 2, jr.key(0)),
            r"`domain_points`.*\(5,\)",
        ),
        (lambda: RARDConfig(num_new_points=0), "`num_new_points`.*0"),
        (lambda: RARDConfig(percentile_threshold=101), "`percentile_threshold`.*101"),
        (lambda: RARDConfig(noise_scale=0.0), "`noise_scale`.*0.0"),
        (lambda: RARDConfig(noise=0.1), "'noise'.*mean 'noise_scale'"),  # type: ignore
        (
            lambda: RARDRefiner().refine(P, R, BOUNDS[:1], jr.key(0)),
            r"`bounds`.*\(2, 2\)",
        ),
        (
            lambda: RARDRefiner().refine(P, R, BOUNDS[:, ::-1], jr.key(0)),
            "`bounds`.*in order",
        ),
        (lambda: RARDRefiner().refine(P, R * jnp.nan, BOUNDS, jr.key(0)), "NaN.*row 0"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
