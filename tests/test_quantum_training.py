"""Density functionals on the command line and in the documented trainers."""

import dataclasses
import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex import cli
from opifex.core.training.config import (
    ConservationConfig,
    DFTConfig,
    MetricsTrackingConfig,
    QuantumTrainingConfig,
    SCFConfig,
    TrainingConfig,
)
from opifex.core.training.trainer import Trainer
from opifex.quantum import (
    AbstractFunctional,
    DIIS,
    FitFunctional,
    Grid,
    KohnSham,
    LDA,
    Linear,
    LossWeights,
    Molecules,
    SCF,
    SoftCoulomb,
)
from opifex.zoo import recipe as recipes
from opifex.zoo.dissociation import exact_curve, h2_dissociation


GRID = Grid(31, 0.6, 4)
PLACES = jnp.array([[-0.6, 0.6], [-1.5, 1.5]])
SMALL = {"grid_points": 31, "grid_spacing": 0.6, "difference_order": 4}


class Simple(AbstractFunctional):
    """What can be trained, and is soon compiled."""

    strength: jax.Array

    def energy_density(self, density, grid):
        del grid
        return -self.strength * density / (1 + density)


def simple():
    return Simple(jnp.array(0.4))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPIFEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def exact():
    found = exact_curve(GRID, (1.2, 3.0))
    return jnp.asarray(found["energies"]), jnp.asarray(found["densities"])


def problem(weights=None, **scf):
    scf = {"max_iterations": 6, "mixing": Linear(), "on_nonconverged": "penalize"} | scf
    weights = LossWeights(start=3) if weights is None else weights
    return FitFunctional(KohnSham(GRID, symmetric=True), SCF(**scf), weights=weights)


# Once for all tests: problems that are alike share a program.
solved = eqx.filter_jit(lambda fit, model: fit.solve(model, PLACES))
terms_of = eqx.filter_jit(lambda fit, *given: fit.terms(*given, jr.key(0)))


def test_terms_are_what_they_are_called():
    energies, densities = exact()
    batch = Molecules(PLACES, energies, densities, jnp.array([True, True]))
    half = dataclasses.replace(batch, valid=jnp.array([True, False]))
    found = solved(problem(), simple())
    terms, aux = terms_of(problem(), simple(), batch)
    first, _ = terms_of(problem(), simple(), half)
    wrong = (np.asarray(found.energies) - energies[:, None]) ** 2
    trajectory = 0.9**2 * wrong[:, 3] + 0.9 * wrong[:, 4]
    np.testing.assert_allclose(terms["energy"], wrong[:, 5].mean() / 2)
    np.testing.assert_allclose(terms["trajectory"], trajectory.mean() / 2)
    square = GRID.spacing * ((found.density - densities) ** 2).sum(1)
    np.testing.assert_allclose(terms["density"], square.mean() / 2)
    np.testing.assert_allclose(terms["nonconverged"], found.residual.mean() / 2)
    assert aux.metrics["scf_converged"] == 0 and aux.metrics["scf_iterations"] == 6
    # Those that do not converge, or are not valid, are left out.
    np.testing.assert_allclose(first["energy"], wrong[0, 5] / 2)
    skipped = problem(on_nonconverged="skip")
    terms, _ = terms_of(skipped, simple(), batch)
    assert set(terms) == {"energy", "trajectory", "density"}
    assert all(value == 0 for value in terms.values())


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="'implicit' does not look at"):
        problem(differentiate="implicit")
    with pytest.raises(ValueError, match="`start` = 9 leaves no iteration"):
        problem(LossWeights())


def test_the_command_line(folder, monkeypatch, capsys):
    """Trains, judges and draws an ensemble, which is the default."""

    def small(dtype=None):
        made = h2_dissociation(dtype, grid=GRID)
        scf = SCF(max_iterations=6, mixing=Linear(), on_nonconverged="penalize")
        fit = FitFunctional(made.problem.system, scf, weights=LossWeights(start=3))
        model = lambda key, dtype: Simple(jr.uniform(key, (), dtype))
        new = {"problem": fit, "judged": (1.0, 2.0, 3.0), "chunk": 2, "steps": 4}
        assert made.ensemble > 1
        return dataclasses.replace(made, model=model, **new, ensemble=2)

    monkeypatch.setitem(recipes.FUNCTIONALS, "h2-dissociation", small)
    train = ["train", "h2-dissociation", "--out", "a", "--json", "f"]
    assert cli.main([*train, "--optimizer", "adam"]) == 0
    assert "chemical accuracy: 1.6" in capsys.readouterr().out
    figures = json.loads((folder / "f").read_text())
    assert len(figures["max_error_mha_members"]) == 2
    assert figures["steps"] == 4 and figures["result"] == "successful"
    with np.load(folder / "a/dissociation.npz") as file:
        saved = dict(file)
    for name, key in (("neural", "max_error_mha"), ("lda", "lda_max_error_mha")):
        wrong = 1e3 * np.abs(saved[name] - saved["exact"])
        np.testing.assert_allclose(figures[key], wrong.max(), rtol=1e-12)
    assert figures["mean_error_mha"] < figures["max_error_mha"]
    assert figures["max_error_mha"] in figures["max_error_mha_members"]
    assert 0 < figures["reference_error_mha"] < 20
    assert figures["scf_iterations"] == 6
    for name in ("dissociation.png", "solution.png", "history.png", "best.eqx"):
        assert (folder / "a" / name).exists()
    assert cli.main(["train", "h2-dissociation", "--sampler", "sobol"]) == 2
    assert "'molecules' to learn a density functional" in capsys.readouterr().err
    assert cli.main(["list"]) == 0
    assert "h2-dissociation " in capsys.readouterr().out


def config(dft=None, scf=None, **options):
    return TrainingConfig(
        dft_config=DFTConfig(**SMALL | (dft or {})),
        scf_config=SCFConfig(
            **{"symmetric": True, "max_iterations": 6, "on_nonconverged": "penalize"}
            | (scf or {})
        ),
        progress=False,
        **options,
    )


def test_the_documented_trainer():
    energies, densities = exact()
    names = ["mae", "chemical_accuracy"]
    options = config(
        num_epochs=20,
        learning_rate=0.03,
        optimizer="adam",
        validation_frequency=10,
        quantum_config=QuantumTrainingConfig(chemical_accuracy_target=1e5),
        metrics_tracking_config=MetricsTrackingConfig(names),
    )
    data = PLACES, energies, densities
    trainer = Trainer(simple(), options)
    model, history = trainer.train(data, val_data=(PLACES, energies))
    assert isinstance(model, Simple) and trainer.model is model
    loss = history["train_loss"]
    assert loss[-1] < 0.5 * loss[0]
    assert {"energy", "density", "nonconverged"} <= set(history)
    found = solved(problem(), model)
    np.testing.assert_allclose(trainer.model_fn(PLACES)[:, 0], found.energy)
    error = np.abs(found.energy - energies).mean()
    np.testing.assert_allclose(history["mae"][-1], error, rtol=1e-9)
    np.testing.assert_allclose(
        history["energy_error_kcal_mol"][-1], 627.5094740631 * error, rtol=1e-9
    )
    assert history["chemically_accurate"][-1] == 1
    assert history["val_loss"][-1] < loss[-1]  # without densities


def _problem_of(options):
    return Trainer(simple(), options).model_fn.args[0].problem


FIELDS = {
    "grid_points": ({"grid_points": 33}, lambda p: p.system.grid.num, 33),
    "grid_spacing": ({"grid_spacing": 1}, lambda p: p.system.grid.spacing, 1.0),
    "difference_order": ({"difference_order": 6}, lambda p: p.system.grid.order, 6),
    "interaction": (
        {"interaction": "soft_coulomb"},
        lambda p: p.system.interaction,
        SoftCoulomb(),
    ),
    "charges": ({"charges": [2, 2]}, lambda p: (p.charges, p.electrons), ((2, 2), 4)),
    "electrons": ({"electrons": 1}, lambda p: p.electrons, 1),
    "density_threshold": ({"density_threshold": 1}, lambda p: p.system.threshold, 1.0),
    "energy_weight": ({"energy_weight": 3}, lambda p: p.weights.energy, 3.0),
    "density_weight": ({"density_weight": 3}, lambda p: p.weights.density, 3.0),
    "trajectory": (
        {"trajectory_weight": 3, "trajectory_discount": 0.5, "trajectory_start": 2},
        lambda p: p.weights,
        LossWeights(1.0, 1.0, 3.0, 0.5, 2),
    ),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_functional_arrives(field):
    given, read, wanted = FIELDS[field]
    assert read(_problem_of(config(given))) == wanted


SCF_FIELDS = {
    "max_iterations": 7,
    "energy_tolerance": 0.1,
    "density_tolerance": 0.1,
    "level_shift": 0.1,
    "smearing": 0.1,
    "differentiate": "implicit",
    "on_nonconverged": "skip",
}


def test_every_field_of_the_iterations_arrives():
    for name, value in SCF_FIELDS.items():
        assert getattr(_problem_of(config(None, {name: value})).scf, name) == value
    mixing = {"mixing": "diis", "mixing_alpha": 0.3, "diis_depth": 4}
    assert _problem_of(config(None, mixing)).scf.mixing == DIIS(0.3, 4)
    assert _problem_of(config(None, {"mixing_decay": 0.9})).scf.mixing == Linear(
        0.5, 0.9
    )
    assert not _problem_of(config(None, {"symmetric": False})).system.symmetric


def test_the_threshold_cuts_exchange_and_correlation_off():
    density = jnp.linspace(0.0, 0.3, 31)
    kept = jnp.where(density > 0.15, density, 0)

    @jax.jit
    def found(density, kept):
        whole, cut = KohnSham(GRID), KohnSham(GRID, threshold=0.15)
        energies = [
            system.exchange_correlation(LDA(), n)
            for system, n in ((whole, density), (cut, density), (whole, kept))
        ]
        return *energies, jax.grad(lambda n: cut.exchange_correlation(LDA(), n))(
            density
        )

    whole, part, wanted, slope = found(density, kept)
    np.testing.assert_allclose(part, wanted, rtol=1e-12)
    assert whole < part < 0
    assert (slope[:15] == 0).all() and (slope[16:] < 0).all()


E = jnp.array([-1.4, -1.4])
BAD = {
    "unit": ((PLACES, 27.2114 * E), UserWarning, "Convert them to hartree"),
    "coincident": ((0 * PLACES, E), ValueError, "coincident nuclei"),
    "not mirrored": ((PLACES + 0.1, E), ValueError, "mirror images"),
    "outside": ((20 * PLACES, E), ValueError, "outside the grid"),
    "nuclei": ((PLACES[:, :1], E), ValueError, r"`train_data\[0\]` must have the"),
    "rows": ((PLACES, E[:1]), ValueError, r"`train_data\[1\]` must have the shape"),
    "grid": ((PLACES, E, jnp.ones((2, 9))), ValueError, r"`train_data\[2\]`"),
    "nan": ((PLACES, E * jnp.nan), ValueError, "finite floats"),
    "none": ((PLACES, None), ValueError, "finite floats"),
    "pair": (PLACES, TypeError, "must be `"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case):
    data, error, message = BAD[case]
    with pytest.raises(error, match=message):
        Trainer(simple(), config()).train(data)


def test_what_has_no_meaning_for_a_functional():
    with pytest.raises(TypeError, match="no array to train"):
        Trainer(LDA(), config())
    with pytest.raises(TypeError, match="train a density functional"):
        Trainer(eqx.nn.Linear(2, 1, key=jr.key(0)), config())
    laws = ConservationConfig(laws=["mass"])
    with pytest.raises(ValueError, match="`conservation_config` has no meaning"):
        Trainer(simple(), config(conservation_config=laws))
    trainer = Trainer(simple(), config())
    trainer.register_custom_loss("mine", lambda f, x, y: f(x)[:, 0])
    with pytest.raises(ValueError, match="`register_custom_loss` has no meaning"):
        trainer.train((PLACES, E))
    odd = Trainer(
        simple(), config({"electrons": 3, "charges": [1, 2]}, {"symmetric": False})
    )
    with pytest.raises(ValueError, match="`electrons` = 3: orbitals are shared"):
        odd.train((jnp.array([[-0.6, 0.6]]), E[:1]))
