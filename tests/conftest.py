"""Eight virtual CPU devices and strict numerics, before JAX is first used."""

import os
from pathlib import Path

os.environ['XLA_FLAGS'] = ' '.join(
    (
        os.environ.get('XLA_FLAGS', ''),
        '--xla_force_host_platform_device_count=8',
        # Most of the time goes into compiling programs that run for milliseconds: without these
        # two it takes twice as long.
        '--xla_backend_optimization_level=0',
        '--xla_cpu_use_fusion_emitters=false',
    )
)

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
# Many tests compile the same small programs: the second time they are read from here. Commands that
# tests start have a folder of their own, for those that are killed may leave half an entry.
CACHE = Path(__file__).parents[1] / '.cache'
jax.config.update('jax_compilation_cache_dir', str(CACHE / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
os.environ |= {
    'JAX_COMPILATION_CACHE_DIR': str(CACHE / 'jax_of_commands'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def standard_promotion():
    """For tests that run optax's schedules or Flax's layers, which mix types themselves."""
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        yield
