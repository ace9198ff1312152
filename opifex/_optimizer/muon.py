from typing import Any

import optax


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    **settings: Any,
) -> optax.GradientTransformation:
    """`optax.contrib.muon` for whole models: matrices by momentum made orthogonal, all
    else (biases, kernels of convolutions, complex weights) by Adam, and weight decay
    for both.

    **Arguments:**

    - `learning_rate`: a number or a schedule, of both.
    - `weight_decay`: how much of the parameters is taken away, times the learning rate.
    - `settings`: the other arguments of `optax.contrib.muon`, such as `beta`, `adam_b1`
        or `adam_learning_rate`.

    ??? cite "Reference"

        K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon, 2024.
    """
    # Optax has an argument of its own for the weight decay of those left to Adam.
    return optax.contrib.muon(
        learning_rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        **settings,
    )
