"""Networks as pure functions of their parameters."""

from balms_jax.models.networks import (
    DTYPES,
    NETWORKS,
    Network,
    build,
    count_parameters,
    side_multiple,
)

__all__ = ['DTYPES', 'NETWORKS', 'Network', 'build', 'count_parameters', 'side_multiple']
