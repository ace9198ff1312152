from .allen_cahn import (
    ALLEN_CAHN_EPS as ALLEN_CAHN_EPS,
    allen_cahn_reference as allen_cahn_reference,
    solve_allen_cahn as solve_allen_cahn,
)
from .burgers import (
    burgers_reference as burgers_reference,
    cole_hopf as cole_hopf,
    cole_hopf_trapezoid as cole_hopf_trapezoid,
    NU as NU,
)
from .elliptic import (
    disc as disc,
    disc_reference as disc_reference,
    disc_source as disc_source,
    helmholtz as helmholtz,
    helmholtz_reference as helmholtz_reference,
    helmholtz_source as helmholtz_source,
    poisson as poisson,
    poisson_reference as poisson_reference,
    poisson_source as poisson_source,
)
from .flow import (
    kovasznay as kovasznay,
    kovasznay_reference as kovasznay_reference,
    KOVASZNAY_REYNOLDS as KOVASZNAY_REYNOLDS,
    taylor_green as taylor_green,
    TAYLOR_GREEN_NU as TAYLOR_GREEN_NU,
    taylor_green_reference as taylor_green_reference,
)
from .heat import (
    diffusion as diffusion,
    diffusion_reference as diffusion_reference,
    diffusion_source as diffusion_source,
    heat as heat,
    HEAT_ALPHA as HEAT_ALPHA,
    heat_reference as heat_reference,
)
from .inverse import (
    burgers_observations as burgers_observations,
    diffusion_reaction as diffusion_reaction,
    DIFFUSION_REACTION_D as DIFFUSION_REACTION_D,
    diffusion_reaction_observations as diffusion_reaction_observations,
    diffusion_reaction_reference as diffusion_reaction_reference,
    Observations as Observations,
    reaction_rate as reaction_rate,
)
from .kdv import (
    KDV_DISPERSION as KDV_DISPERSION,
    kdv_reference as kdv_reference,
    solve_kdv as solve_kdv,
)
from .l_shape import (
    l_shape as l_shape,
    l_shape_error as l_shape_error,
    l_shape_reference as l_shape_reference,
)
from .many_dims import (
    poisson_nd as poisson_nd,
    poisson_nd_reference as poisson_nd_reference,
    poisson_nd_source as poisson_nd_source,
    two_body as two_body,
    two_body_reference as two_body_reference,
    two_body_source as two_body_source,
)
from .spectral import etdrk4 as etdrk4
from .waves import (
    advection as advection,
    advection_reference as advection_reference,
    ADVECTION_SPEED as ADVECTION_SPEED,
    wave as wave,
    wave_reference as wave_reference,
    WAVE_SPEED as WAVE_SPEED,
)
