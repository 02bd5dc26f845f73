"""Networks as pure functions of their parameters."""

from balms_jax.models.networks import NETWORKS, Network, build, count_parameters

__all__ = ['NETWORKS', 'Network', 'build', 'count_parameters']
