"""Points lie in their shells, in any dimension, in the shares of the published code."""

import jax
import numpy as np
import pytest

from ode_nets.problems import spheres


@pytest.mark.parametrize("dimension", [1, 2, 3, 900])
def test_points_lie_in_the_shells_of_their_class(dimension):
    x, labels = spheres.generate(jax.random.key(0), 200, dimension)
    assert x.shape == (200, dimension)
    radius = np.linalg.norm(x, axis=1)[:, None]
    inside = np.stack([(radius[:, 0] > a - 1e-5) & (radius[:, 0] < b + 1e-5) for a, b in spheres.SHELLS])
    assert inside.sum(1).tolist() == [50, 100, 50]
    np.testing.assert_array_equal(np.asarray(labels) == 1, inside[1])


def test_points_repeat_by_key_and_fill_the_plane():
    one, other = (np.asarray(spheres.generate(jax.random.key(seed), 400, 2)[0]) for seed in (3, 4))
    np.testing.assert_array_equal(one, spheres.generate(jax.random.key(3), 400, 2)[0])
    assert not np.array_equal(one, other)
    assert all(((one[:, 0] * a > 0) & (one[:, 1] * b > 0)).sum() > 60 for a in (1, -1) for b in (1, -1))


def test_any_number_of_shells_shares_equally_between_two_classes():
    shells = [(0.1 * k, 0.1 * k + 0.05) for k in range(4)]
    _, labels = spheres.generate(jax.random.key(0), 12, 2, shells)
    assert np.bincount(labels).tolist() == [6, 6]
    assert np.bincount(spheres.generate(jax.random.key(0), 5, 2, shells[:1])[1]).tolist() == [5]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 2), "n=0"),
        ((10, 0), "dimension=0"),
        ((10, 2, ((0.2, 0.1),)), "shells="),
        ((10, 2, ((0.1, 0.3), (0.2, 0.4))), "shells="),
        ((10, 2, ()), "shells="),
    ],
)
def test_bad_arguments_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        spheres.generate(jax.random.key(0), *arguments)
