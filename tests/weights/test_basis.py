"""Bases, exact reads on grids, and refinement, projection and interpolation of weight functions."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from ode_nets.integrate import WeightFunction
from ode_nets.tableaus import SCHEMES
from ode_nets.weights import (
    BasisExpansion,
    Chebyshev,
    Constant,
    Fourier,
    Legendre,
    PiecewiseConstant,
    PiecewiseLinear,
    gram_matrix,
    interpolation_matrix,
    interval_index,
    projection_matrix,
    refinement_matrix,
    stage_offset,
    transform,
)

KINDS = (PiecewiseConstant, PiecewiseLinear, Legendre, Chebyshev, Fourier)
BASES = tuple(kind(n) for kind in KINDS for n in (1, 4, 5))
NODES = sorted({Fraction(c) for tableau in SCHEMES.values() for c in tableau.c})
TIMES = np.array([0.0, 0.01, 1 / 7, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.77, 0.8, 5 / 6, 1.0])


def coefficients(n, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2), "b": (4,), "s": ()}
    return {name: jnp.asarray(rng.normal(size=(n, *shape)), dtype) for name, shape in shapes.items()}


def values(weights, times=TIMES, side=1):
    """theta at many times, `[len(times), ...]`, by NumPy: what `at` has to give (ContinuousNet eq. 24)."""
    phi = weights.basis.evaluate(times, side)
    return jax.tree.map(lambda leaf: np.tensordot(phi, np.asarray(leaf), 1), weights.coefficients)


def assert_close(left, right, atol):
    for got, expected in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def assert_same_function(left, right, atol=1e-12):
    times = np.union1d(TIMES, right.basis.breaks())
    for side in (1, -1):
        assert_close(values(left, times, side), values(right, times, side), atol)


def ratio(node):
    node = Fraction(node)
    return node.numerator, node.denominator


def take(sections, k):
    return jax.tree.map(lambda leaf: leaf[k], sections)


# --- Which interval a stage reads ---------------------------------------------------------------------


def test_interval_index_is_the_rational_one_for_every_small_grid():
    """All N, M <= 130, all steps, all nodes of the catalogue, and the same inside the sections of a grid.

    Against the index of the point (k + c) / N itself: floor(M (k + c) / N), or for c >= 1 the largest integer
    below M (k + c) / N, in exact integers (of any length, for the nodes with long denominators).
    """
    short = [c for c in NODES if c.denominator < 10**4]
    for dtype, nodes in ((np.int64, short), (object, sorted({*NODES} - {*short}))):
        p, q = (np.array([getattr(c, name) for c in nodes], dtype)[:, None] for name in ("numerator", "denominator"))
        offsets = {m: np.array([stage_offset(m, c) for c in nodes])[:, None] for m in range(1, 131)}
        for n in range(1, 131):
            k = np.arange(n)
            point = k.astype(dtype) * q + p
            for m in range(1, 131):
                scaled = m * point
                expected = np.where(p < q, scaled // (n * q), -(-scaled // (n * q)) - 1)
                got = interval_index(k, n, m, offsets[m])
                sections = math.gcd(m, n)
                inside, served = m // sections, n // sections
                local = interval_index(k % served, served, inside, offsets[inside])
                assert (got == expected).all(), (n, m)
                assert (k // served * inside + local == expected).all(), (n, m)


def test_interval_index_against_fractions_and_under_jit():
    traced = jax.jit(interval_index)
    for n, m in ((7, 3), (3, 7), (9, 9), (14, 12), (12, 14), (1, 5), (49, 49)):
        for c in NODES:
            offset = stage_offset(m, c)
            for k in range(n):
                place = m * (k + c) / n
                expected = math.floor(place) if c < 1 else math.ceil(place) - 1
                index = interval_index(k, n, m, offset)
                assert (type(index), index) == (int, expected)
            steps = np.arange(n, dtype=np.int32)
            got = traced(steps, n, m, offset)
            assert got.dtype == np.int32
            np.testing.assert_array_equal(got, [interval_index(k, n, m, offset) for k in range(n)])


def test_stage_offset_takes_the_limit_from_inside_the_step():
    assert [stage_offset(4, Fraction(c)) for c in ("0", "1/8", "1/4", "1/2", "99/100", "1", "5/4")] == [
        *(0, 0, 1, 2, 3, 3, 4)
    ]
    assert stage_offset(2, 1.0) == 1
    assert stage_offset(10, 0.1) == 1  # the float 0.1 lies above 1/10
    assert stage_offset(10, 0.3) == 2  # and 0.3 below 3/10


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (4, 6), (8, 2), (2, 8), (5, 7)])
def test_sections_read_the_coefficient_of_its_interval_bit_by_bit(n, m):
    c = SCHEMES["dopri5"].c
    places = [[m * (k + Fraction(node)) / n for node in c] for k in range(n)]
    expected = [
        [math.floor(p) if node < 1 else math.ceil(p) - 1 for p, node in zip(row, c, strict=True)] for row in places
    ]
    weights = BasisExpansion(PiecewiseConstant(m), jnp.arange(m, dtype=jnp.float32))
    assert weights.n_sections(n) == math.gcd(n, m)
    for n_sections in {1, math.gcd(n, m)}:
        sections = weights.sections(n_sections)
        assert sections.coefficients.shape == (n_sections, m // n_sections)
        per_section = n // n_sections

        @jax.jit
        @jax.vmap
        def stages(k, sections=sections, per_section=per_section):
            section = take(sections, k // per_section)
            return jnp.stack([section.at_node(k % per_section, per_section, *ratio(node)) for node in c])

        np.testing.assert_array_equal(stages(jnp.arange(n)), expected)
    over_stages = jax.vmap(weights.at_node, (None, None, 0, 0))
    node = jax.jit(jax.vmap(over_stages, (0, None, None, None)))
    numerators, denominators = (jnp.array([getattr(x, part) for x in c]) for part in ("numerator", "denominator"))
    np.testing.assert_array_equal(node(jnp.arange(n), jnp.int32(n), numerators, denominators), expected)


def test_aligned_grids_read_without_any_dynamic_index():
    """One coefficient to a section, or one step to it: the program holds neither slice nor gather."""
    for n, m in ((8, 4), (4, 4), (4, 8)):
        weights = BasisExpansion(PiecewiseConstant(m), jnp.ones((m, 3)))
        n_sections = weights.n_sections(n)
        section, per_section = take(weights.sections(n_sections), 0), n // n_sections
        for node in SCHEMES["rk4"].c:
            read = lambda s, k, node=node, p=per_section: s.at_node(0 if p == 1 else k, p, *ratio(node))
            program = str(jax.make_jaxpr(read)(section, jnp.int32(0)))
            assert "dynamic" not in program
            assert "gather" not in program


@pytest.mark.parametrize("basis", [kind(6) for kind in KINDS], ids=str)
def test_sections_and_at_node_agree_with_at(x64, basis):
    """At stage times, from inside the step; a domain of another length changes nothing."""
    n_steps, c = 3, (Fraction(1, 3), Fraction(1))
    weights = BasisExpansion(basis, coefficients(basis.n_basis)["w"], domain=(-1.0, 2.0))
    per_section = n_steps // weights.n_sections(n_steps)

    @jax.jit
    @jax.vmap
    def three_ways(k):
        section = take(weights.sections(n_steps // per_section), k // per_section)
        out = []
        for node in c:
            at = weights.at(-1 + 3 * (k + float(node)) / n_steps, -1 if node == 1 else 1)
            by_node = weights.at_node(k, n_steps, jnp.int32(node.numerator), jnp.int32(node.denominator))
            out.append((at, section.at_node(k % per_section, per_section, *ratio(node)), by_node))
        return out

    for at, by_grid, by_node in three_ways(jnp.arange(n_steps, dtype=jnp.int32)):
        assert_close((by_grid, by_node), (at, at), 1e-13)


@pytest.mark.parametrize("basis", [PiecewiseConstant(6), PiecewiseLinear(6)], ids=str)
def test_gradient_of_a_read_touches_only_its_interval(basis):
    width = 1 if isinstance(basis, PiecewiseConstant) else 2
    weights = BasisExpansion(basis, coefficients(6, dtype=np.float32))

    def total(weights, k):
        theta = take(weights.sections(1), 0).at_node(k, 4, 1, 2)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(theta))

    gradient = jax.jit(jax.grad(total))
    for k in range(4):
        first = math.floor(Fraction(2 * k + 1, 8) * (6 if width == 1 else 5))
        for leaf in jax.tree.leaves(gradient(weights, jnp.int32(k))):
            touched = np.flatnonzero(np.abs(leaf.reshape(6, -1)).max(1))
            np.testing.assert_array_equal(touched, np.arange(first, first + width))
            np.testing.assert_allclose(leaf.sum(0), 1.0, rtol=1e-6)


# --- The functions ------------------------------------------------------------------------------------


def test_bases_are_the_known_functions(x64):
    u = np.linspace(0, 1, 11)
    for compiled in (lambda f: f, jax.jit):

        def phi(basis, compiled=compiled):
            return compiled(basis.evaluate)(u)

        np.testing.assert_allclose(phi(Legendre(6)), np.polynomial.legendre.legvander(2 * u - 1, 5), atol=1e-14)
        np.testing.assert_allclose(phi(Chebyshev(6)), np.polynomial.chebyshev.chebvander(2 * u - 1, 5), atol=1e-14)
        waves = [np.ones_like(u), np.cos(2 * np.pi * u), np.sin(2 * np.pi * u), np.cos(4 * np.pi * u)]
        np.testing.assert_allclose(phi(Fourier(4)), np.stack(waves, 1), atol=1e-14)
        hats = np.stack([np.interp(u, np.linspace(0, 1, 5), row) for row in np.eye(5)], 1)
        np.testing.assert_allclose(phi(PiecewiseLinear(5)), hats, atol=1e-14)
        index = np.minimum(np.floor(np.round(4 * u, 9)), 3)
        np.testing.assert_array_equal(phi(PiecewiseConstant(4)), index[:, None] == np.arange(4))


@pytest.mark.parametrize("basis", BASES, ids=str)
def test_at_is_the_sum_over_basis_functions(x64, basis):
    """ContinuousNet eq. 24, also where only one coefficient or two are read, under jit and vmap."""
    weights = BasisExpansion(basis, coefficients(basis.n_basis))
    at = jax.jit(jax.vmap(weights.at, (0, None)))
    for side in (1, -1):
        assert basis.evaluate(TIMES, side).shape == (len(TIMES), basis.n_basis)
        assert_close(at(TIMES, side), values(weights, side=side), 1e-14)


def test_first_function_is_constant_or_all_sum_to_one():
    for basis in BASES:
        phi = basis.evaluate(TIMES)
        np.testing.assert_allclose(phi.sum(1) if basis.nodal else phi[:, 0], 1.0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [3, 7, 49, 130])
def test_every_break_belongs_to_the_side_asked_for(x64, dtype, m):
    """k / m in floating point is off by a rounding and still counts as the break."""
    weights = BasisExpansion(PiecewiseConstant(m), jnp.arange(m, dtype=dtype))
    breaks = (np.arange(m + 1) / m).astype(dtype)
    read = jax.jit(jax.vmap(weights.at, (0, None)))
    np.testing.assert_array_equal(read(breaks, 1), np.minimum(np.arange(m + 1), m - 1))
    np.testing.assert_array_equal(read(breaks, -1), np.maximum(np.arange(m + 1) - 1, 0))


def test_times_outside_the_domain_are_clipped():
    for kind in KINDS:
        weights = BasisExpansion(kind(3), jnp.arange(1.0, 4.0), domain=(2.0, 4.0))
        below, first, above, last = jax.jit(jax.vmap(weights.at))(jnp.array([1.0, 2.0, 9.0, 4.0]))
        assert (below, above) == (first, last)


@pytest.mark.parametrize("kind", [PiecewiseLinear, Legendre, Chebyshev, Fourier])
def test_derivative_in_time_matches_differences(x64, kind):
    """Inside the domain and, from the inside, at its ends."""
    weights = BasisExpansion(kind(5), coefficients(5)["s"], domain=(0.0, 2.0))
    at, slope = (jax.jit(jax.vmap(f)) for f in (weights.at, jax.grad(weights.at)))
    times, h = np.array([0.0, 0.1, 0.9, 1.7, 2.0]), 1e-6
    left, right = np.maximum(times - h, 0), np.minimum(times + h, 2)
    difference = (at(right) - at(left)) / (right - left)
    np.testing.assert_allclose(slope(times)[1:-1], difference[1:-1], rtol=1e-7)
    np.testing.assert_allclose(slope(times), difference, rtol=1e-3)


@pytest.mark.parametrize("kind", [Legendre, Chebyshev, Fourier, PiecewiseLinear])
def test_float32_reads_lose_few_digits(kind):
    basis = kind(33)
    u = np.linspace(0, 1, 200, dtype=np.float32)
    got = np.asarray(basis.evaluate(jnp.asarray(u)))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, basis.evaluate(u.astype(np.float64)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes_of_leaves_are_kept(x64, dtype):
    """Mixed in one tree, by reads and by rewritings."""
    tree = {"low": jnp.ones((4, 2), dtype), "high": jnp.ones((4,), jnp.float32)}
    for basis in (PiecewiseConstant(4), PiecewiseLinear(4), Legendre(4)):
        weights = BasisExpansion(basis, tree)
        for out in (
            jax.eval_shape(weights.at, 0.3),
            jax.eval_shape(lambda w: w.refined(), weights).coefficients,
            jax.eval_shape(lambda w: w.projected(Legendre(3)), weights).coefficients,
        ):
            assert (out["low"].dtype, out["high"].dtype) == (dtype, jnp.float32)


# --- Refine, project, interpolate ---------------------------------------------------------------------


@pytest.mark.parametrize("basis", BASES, ids=str)
def test_refine_keeps_the_function_and_projection_undoes_it(x64, basis):
    weights = BasisExpansion(basis, coefficients(basis.n_basis))

    @jax.jit
    def there_and_back(weights):
        finer = weights.refined()
        return finer, finer.projected(basis)

    finer, back = there_and_back(weights)
    assert_same_function(finer, weights)
    assert_close(back, weights, 1e-12)


@pytest.mark.parametrize("basis", BASES, ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_refinement_matrices_by_any_factor(basis, factor):
    new, matrix = basis.refined(factor), refinement_matrix(basis, factor)
    linear = isinstance(basis, PiecewiseLinear) and basis.n_basis > 1
    assert (type(new), new.n_basis) == (type(basis), (basis.n_basis - linear) * factor + linear)
    assert matrix.shape == (new.n_basis, basis.n_basis)
    for side in (1, -1):
        np.testing.assert_allclose(new.evaluate(TIMES, side) @ matrix, basis.evaluate(TIMES, side), atol=1e-13)
    np.testing.assert_allclose(projection_matrix(new, basis) @ matrix, np.eye(basis.n_basis), atol=1e-13)
    if factor == 1:
        np.testing.assert_array_equal(matrix, np.eye(basis.n_basis))


def test_refining_intervals_copies_coefficients_bit_by_bit():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32).at[0, 0].set(jnp.nan)
    finer = BasisExpansion(PiecewiseConstant(7), leaf).refined(3).coefficients
    np.testing.assert_array_equal(finer, np.repeat(leaf, 3, 0))
    np.testing.assert_array_equal(refinement_matrix(PiecewiseConstant(5)), np.repeat(np.eye(5), 2, 0))


def test_euler_reads_the_same_units_before_and_after_a_refinement():
    """M = N = 4, refined to M = 8: every stage of the four steps sees the same bits."""
    weights = BasisExpansion(PiecewiseConstant(4), coefficients(4, dtype=np.float32)["w"])
    for scheme in ("euler", "rk4"):
        c = SCHEMES[scheme].c
        old, new = weights.sections(4), weights.refined().sections(4)
        for k in range(4):
            np.testing.assert_array_equal(take(old, k).at_node(0, 1, 0, 1), weights.coefficients[k])
            for node in c:
                reads = [take(sections, k).at_node(0, 1, *ratio(node)) for sections in (new, old)]
                np.testing.assert_array_equal(*reads)


@pytest.mark.parametrize("old", [kind(6) for kind in KINDS], ids=str)
@pytest.mark.parametrize("new", [kind(n) for kind in KINDS for n in (1, 4, 9)], ids=str)
def test_projection_is_optimal(old, new):
    """The residual is orthogonal to the new basis, so no other coefficients come closer to theta.

    int psi_i(t) (theta(t) - projection(t)) dt = 0 for every psi_i, by SciPy's adaptive quadrature
    """
    theta = np.random.default_rng(0).normal(size=6)
    projected = projection_matrix(old, new) @ theta

    def integrand(u):
        psi = new.evaluate(u)
        return psi * (old.evaluate(u) @ theta - psi @ projected)[..., None]

    residual = np.zeros(new.n_basis)
    for a, b in itertools.pairwise(np.union1d(new.breaks(), old.breaks())):
        cubature = scipy.integrate.cubature(lambda x: integrand(x[:, 0]), [a], [b], rtol=0, atol=1e-13)
        assert cubature.status == "converged"
        residual += cubature.estimate
    assert np.abs(residual).max() < 1e-12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Legendre(5), Chebyshev(5)),
        (Chebyshev(6), Legendre(9)),
        (PiecewiseConstant(4), PiecewiseConstant(12)),
        (PiecewiseLinear(4), PiecewiseLinear(10)),
        (Legendre(2), PiecewiseLinear(7)),
        (PiecewiseConstant(1), Fourier(4)),
        (PiecewiseLinear(2), Chebyshev(3)),
        (Fourier(3), Fourier(8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("rewrite", [BasisExpansion.projected, BasisExpansion.interpolated])
def test_a_function_in_the_new_space_is_represented_exactly(x64, rewrite, old, new):
    weights = BasisExpansion(old, coefficients(old.n_basis), domain=(0.0, 1.0))
    assert_same_function(rewrite(weights, new), weights)


@pytest.mark.parametrize("old", [kind(5) for kind in KINDS], ids=str)
@pytest.mark.parametrize("new", BASES, ids=str)
def test_interpolation_agrees_at_the_nodes(old, new):
    theta, nodes = np.random.default_rng(0).normal(size=5), new.nodes()
    assert nodes.shape == (new.n_basis,)
    interpolated, sampled = interpolation_matrix(old, new) @ theta, old.evaluate(nodes) @ theta
    np.testing.assert_allclose(new.evaluate(nodes) @ interpolated, sampled, atol=1e-12)
    if new.nodal:
        np.testing.assert_allclose(interpolated, sampled, atol=1e-12)


def test_projection_between_intervals_averages_over_the_overlap():
    """Up by a whole factor it copies, down by one it takes means, otherwise it weighs by length."""
    np.testing.assert_array_equal(projection_matrix(PiecewiseConstant(4), PiecewiseConstant(4)), np.eye(4))
    up = projection_matrix(PiecewiseConstant(3), PiecewiseConstant(6))
    np.testing.assert_array_equal(up, np.repeat(np.eye(3), 2, 0))
    down = projection_matrix(PiecewiseConstant(6), PiecewiseConstant(3))
    np.testing.assert_allclose(down, up.T / 2, atol=1e-15)
    thirds = projection_matrix(PiecewiseConstant(3), PiecewiseConstant(2))
    np.testing.assert_allclose(thirds, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-15)


def test_what_is_copied_is_copied_exactly():
    """Entries that are zero or one are so to the last bit, whatever the quadrature rounds."""
    for n in range(2, 40):
        for factor in (2, 3):
            copies = projection_matrix(PiecewiseConstant(n), PiecewiseConstant(factor * n))
            np.testing.assert_array_equal(copies, np.repeat(np.eye(n), factor, 0))
            np.testing.assert_array_equal(refinement_matrix(PiecewiseLinear(n), factor)[::factor], np.eye(n))


def test_mass_matrices_are_the_known_ones():
    np.testing.assert_allclose(gram_matrix(PiecewiseConstant(4), PiecewiseConstant(4)), np.eye(4) / 4, atol=1e-15)
    np.testing.assert_allclose(gram_matrix(Legendre(6), Legendre(6)), np.diag(1 / (2 * np.arange(6) + 1)), atol=1e-15)
    hats = (np.diag([2, 4, 4, 2]) + np.eye(4, k=1) + np.eye(4, k=-1)) / 18
    np.testing.assert_allclose(gram_matrix(PiecewiseLinear(4), PiecewiseLinear(4)), hats, atol=1e-15)
    waves = gram_matrix(Fourier(129), Fourier(129))
    np.testing.assert_allclose(waves, np.diag([1.0] + [0.5] * 128), atol=1e-13)


def test_rewritings_are_jitted_linear_maps_with_the_matrix_as_gradient(x64):
    weights = BasisExpansion(PiecewiseConstant(8), coefficients(8)["w"])
    matrix = projection_matrix(PiecewiseConstant(8), Legendre(3))
    got = jax.jit(lambda w: w.projected(Legendre(3)))(weights)
    np.testing.assert_allclose(got.coefficients, np.tensordot(matrix, weights.coefficients, 1), atol=1e-14)
    pulled = jax.vjp(lambda w: w.projected(Legendre(3)), weights)[1](got)[0]
    assert isinstance(pulled, BasisExpansion)
    np.testing.assert_allclose(pulled.coefficients, np.tensordot(matrix.T, np.asarray(got.coefficients), 1), atol=1e-14)


def test_transform_serves_whatever_is_stacked_alike():
    """Optimizer moments go through the matrix of the coefficients; scalars per interval included."""
    moments = {"mu": jnp.arange(4.0), "nu": jnp.ones((4, 2, 3))}
    out = transform(moments, interpolation_matrix(PiecewiseConstant(4), PiecewiseConstant(2)))
    assert (out["mu"].shape, out["nu"].shape) == ((2,), (2, 2, 3))
    np.testing.assert_array_equal(out["mu"], [1.0, 3.0])


# --- Pytrees and faults -------------------------------------------------------------------------------


def test_expansions_are_weight_functions_and_pytrees():
    weights = BasisExpansion(Legendre(3), coefficients(3, dtype=np.float32), domain=(0, 2))
    assert isinstance(weights, WeightFunction)
    assert isinstance(Constant(1.0), WeightFunction)
    assert weights.domain == (0.0, 2.0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(weights)]
    assert paths == [".coefficients['b']", ".coefficients['s']", ".coefficients['w']"]
    many = jax.vmap(lambda seed: jax.tree.map(lambda leaf: leaf * seed, weights))(jnp.arange(1.0, 3.0))
    assert many.coefficients["w"].shape == (2, 3, 3, 2)
    one, two = jax.vmap(lambda w: w.at(1.5))(many)["w"]
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


def test_equal_bases_are_one_static_value():
    assert PiecewiseLinear(4) == PiecewiseLinear(4) != PiecewiseConstant(4)
    assert hash(Fourier(3)) == hash(Fourier(3))
    traces = []
    read = jax.jit(lambda w: (traces.append(1), w.at(0.5))[1])
    for seed in range(3):
        read(BasisExpansion(Chebyshev(4), coefficients(4, seed, np.float32)))
    assert len(traces) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_basis", [0, -2, 2.0, True])
def test_sizes_must_be_positive_integers(kind, n_basis):
    with pytest.raises(ValueError, match=rf"n_basis={n_basis}: expected an integer of at least 1"):
        kind(n_basis)


@pytest.mark.parametrize("factor", [0, -1, 1.5])
def test_factors_must_be_positive_integers(factor):
    for basis in BASES:
        with pytest.raises(ValueError, match=f"factor={factor}: expected an integer of at least 1"):
            BasisExpansion(basis, jnp.ones(basis.n_basis)).refined(factor)


def test_wrong_leaves_are_named():
    good = jnp.ones((4, 2))
    with pytest.raises(
        ValueError,
        match=r"coefficients\['a'\]\['b'\] has shape \(3, 2\): expected a leading axis of 4, as Piece",
    ):
        BasisExpansion(PiecewiseConstant(4), {"a": {"b": good[:3]}, "c": good})
    with pytest.raises(ValueError, match=r"coefficients\['s'\] has shape \(\): expected a leading axis of 4"):
        BasisExpansion(Legendre(4), {"s": jnp.float32(1.0)})
    with pytest.raises(ValueError, match=r"coefficients\['n'\] has dtype int32: expected a floating-point array"):
        BasisExpansion(Legendre(4), {"n": jnp.arange(4)})
    with pytest.raises(ValueError, match=r"tree\['count'\] has dtype int32"):
        transform({"mu": good, "count": jnp.arange(4)}, np.eye(4))
    with pytest.raises(ValueError, match=r"tree\['mu'\] has shape \(4, 2\): expected a leading axis of 5, as a matrix"):
        transform({"mu": good}, np.eye(5))
    with pytest.raises(ValueError, match=r"matrix=<float64\[4\]>: expected .* \[n_new, n_old\]"):
        transform({"mu": good}, np.ones(4))


def test_a_stack_of_expansions_is_refused_where_it_is_read():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), BasisExpansion(Legendre(4), jnp.ones((4, 2))))
    for read in (
        lambda: stacked.at(0.5),
        lambda: stacked.sections(2),
        lambda: stacked.at_node(0, 4, 0, 1),
    ):
        with pytest.raises(ValueError, match=r"coefficients has shape \(3, 4, 2\): expected a leading axis of 4"):
            read()


@pytest.mark.parametrize("domain", [(1.0, 1.0), (2.0, 0.0), (0.0, float("nan"))])
def test_domains_must_have_a_length(domain):
    with pytest.raises(ValueError, match=r"domain=.*: expected \(t0, t1\) with t0 < t1"):
        BasisExpansion(PiecewiseConstant(2), jnp.ones(2), domain)


def test_sections_must_divide_what_the_basis_allows():
    with pytest.raises(ValueError, match=r"n_sections=4: PiecewiseConstant\(n_basis=6\) cannot be cut"):
        BasisExpansion(PiecewiseConstant(6), jnp.ones(6)).sections(4)
    with pytest.raises(ValueError, match=r"n_sections=2: Legendre\(n_basis=6\) cannot be cut"):
        BasisExpansion(Legendre(6), jnp.ones(6)).sections(2)


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_what_is_called_constant_is_the_same_at_all_times_and_nothing_else_is(basis):
    theta = BasisExpansion(basis, coefficients(basis.n_basis, dtype=np.float32))
    seen = np.stack([theta.at(t)["w"] for t in TIMES])
    assert theta.constant == bool((seen == seen[0]).all())
    jax.tree.map(np.testing.assert_array_equal, theta.read(0.3, -1), theta.at(0.3, -1))
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(theta.at(jnp.nan)))
