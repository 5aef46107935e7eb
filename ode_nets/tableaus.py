"""Butcher tableaus of explicit Runge-Kutta schemes, as frozen data that verify themselves.

    k_i = f(t + c_i h, x + h sum_j a_ij k_j),   x_new = x + h sum_i b_i k_i   (ContinuousNet eq. 11 is RK4)

Each is checked against the rooted-tree order conditions when it is made, and refused by the one that it breaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from ode_nets.arguments import checked
from ode_nets.rooted_trees import Number, Tree, density, dot, elementary_weights, formula, n_nodes, rooted_trees

Polynomial = tuple[Number, ...]

FLOAT_TOLERANCE = 1e-12  # of a condition in a tableau that holds floats; one of fractions must be exact


@dataclass(frozen=True)
@checked
class Tableau:
    """An explicit Runge-Kutta scheme with its error estimate and dense output; hashable, equal by value.

    x_new = x + h sum_i b_i k_i,  error = h sum_i b_error_i k_i,  x(t + s h) = x + h sum_i b_i(s) k_i

    Args:
        name: how the scheme is called in messages; its key in `SCHEMES` for the catalogue.
        a: row i holds the i entries left of the diagonal, so `a[0] == ()`.
        b: the weights of the solution that is carried on, one a stage.
        c: the nodes, `c_i = sum_j a_ij`.
        order: the order of `b`; every order condition up to it is checked.
        b_error: `b` minus the embedded weights, so it sums to 0; None for a scheme without error estimate.
        embedded_order: the order of `b - b_error`, checked likewise; given if and only if `b_error` is.
        b_dense: for each stage the coefficients of the polynomial b_i(s), 0 <= s <= 1, ascending from s^1;
            b_i(1) = b_i and sum_i b_i(s) = s. None: the stages give no interpolant, and a dense output has to
            be the cubic Hermite polynomial through states and derivatives at both ends of the step; its order
            is at most 3, and it costs one evaluation where the next step's first stage is not at hand.

    Entries are `int`, `Fraction` (conditions must hold exactly) or `float` (to 1e-12).

    Raises:
        ValueError: a wrong shape, or the first condition that fails, by name, with the value found.

    Example:
        >>> heun = Tableau("heun", ((), (1,)), b=(Fraction(1, 2), Fraction(1, 2)), c=(0, 1), order=2)
        >>> heun, heun.n_stages, heun.fsal
        (Tableau(heun), 2, False)
    """

    name: str
    a: tuple[tuple[Number, ...], ...]
    b: tuple[Number, ...]
    c: tuple[Number, ...]
    order: int
    b_error: tuple[Number, ...] | None = None
    embedded_order: int | None = None
    b_dense: tuple[Polynomial, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("a", "b", "c", "b_error", "b_dense"):
            value = getattr(self, field)
            if value is not None:
                nested = field in ("a", "b_dense")
                object.__setattr__(self, field, tuple(map(_numbers, value)) if nested else _numbers(value))
        _check_shapes(self)
        _check_conditions(self)
        # jit hashes static arguments at every call and hashing fractions is slow. Only numbers enter, because
        # the hash of a string differs between processes and this one is pickled with the tableau.
        object.__setattr__(self, "_hash", hash((self.a, self.b, self.c, self.order)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"Tableau({self.name})"

    @property
    def n_stages(self) -> int:
        """Evaluations of the field in a step that shares none with its neighbours."""
        return len(self.b)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the field at the new state, so that the next step can start with it."""
        return self.n_stages > 1 and self.b[-1] == 0 and self.c[-1] == 1 and self.a[-1] == self.b[:-1]

    @property
    def dense_order(self) -> int | None:
        """Largest q for which `b_dense` meets every tree condition up to q for all s; None without `b_dense`.

        sum_i b_i(s) Phi_i(tree) = s^q / gamma(tree)  for every tree with q nodes
        """
        if self.b_dense is None:
            return None
        order = 0
        while not any(_dense_defect(self, tree) for tree in rooted_trees(order + 1)):
            order += 1
        return order


def _numbers(values: Sequence[Number]) -> tuple[Number, ...]:
    # Whole numbers become fractions, so that they do not make an exact tableau a rounded one.
    return tuple(Fraction(v) if isinstance(v, (int, Fraction)) else float(v) for v in values)


def _check_shapes(tableau: Tableau) -> None:
    name, stages = f"tableau {tableau.name!r}", len(tableau.b)
    for field in ("a", "c", "b_error", "b_dense"):
        value = getattr(tableau, field)
        if value is not None and len(value) != stages:
            raise ValueError(f"{name}: {field} must have one entry a stage, {stages} as b, got {len(value)}")
    for i, row in enumerate(tableau.a):
        if len(row) != i:
            raise ValueError(
                f"{name}: a must be strictly lower triangular, row {i} holding the {i} entries left of the "
                f"diagonal, got {len(row)} entries"
            )
    if (tableau.b_error is None) != (tableau.embedded_order is None):
        raise ValueError(
            f"{name}: b_error and embedded_order belong together, "
            f"got b_error={tableau.b_error}, embedded_order={tableau.embedded_order}"
        )
    for field in ("order", "embedded_order"):
        order = getattr(tableau, field)
        if order is not None and order < 1:
            raise ValueError(f"{name}: {field} must be at least 1, got {order}")


def _close(got: Number, expected: Number) -> bool:
    if isinstance(got, Fraction) and isinstance(expected, Fraction):
        return got == expected
    return abs(float(got) - float(expected)) <= FLOAT_TOLERANCE


def _check_conditions(tableau: Tableau) -> None:
    name = f"tableau {tableau.name!r}"
    for i, row in enumerate(tableau.a):
        total = sum(row, Fraction(0))
        if not _close(total, tableau.c[i]):
            raise ValueError(
                f"{name} fails the row-sum condition c_{i} = sum_j a_{i}j: "
                f"got c_{i} = {tableau.c[i]}, sum_j a_{i}j = {total}"
            )
    _check_order(tableau, tableau.b, tableau.order, "b", "order")
    if tableau.b_error is not None and tableau.embedded_order is not None:
        total = sum(tableau.b_error, Fraction(0))
        if not _close(total, Fraction(0)):
            raise ValueError(f"{name} fails sum_i b_error_i = 0 (b minus embedded weights): got {total}")
        if all(_close(weight, Fraction(0)) for weight in tableau.b_error):
            raise ValueError(f"{name}: b_error is zero, so no step would ever be rejected; the embedded weights are b")
        embedded = tuple(x - y for x, y in zip(tableau.b, tableau.b_error, strict=True))
        _check_order(tableau, embedded, tableau.embedded_order, "bhat", "embedded order")
    if tableau.b_dense is not None:
        for i, (polynomial, weight) in enumerate(zip(tableau.b_dense, tableau.b, strict=True)):
            end = sum(polynomial, Fraction(0))
            if not _close(end, weight):
                raise ValueError(f"{name} fails b_dense_{i}(1) = b_{i} = {weight}: got {end}")
        if defect := _dense_defect(tableau, ()):
            raise ValueError(f"{name} fails sum_i b_dense_i(s) = s: got an excess {defect[1]} s^{defect[0]}")


def _check_order(tableau: Tableau, weights: Sequence[Number], order: int, symbol: str, claim: str) -> None:
    for nodes in range(1, order + 1):
        for tree in rooted_trees(nodes):
            got = dot(weights, elementary_weights(tableau.a, tree))
            expected = Fraction(1, density(tree))
            if not _close(got, expected):
                condition = formula(tree).replace("b_", f"{symbol}_", 1)
                raise ValueError(
                    f"tableau {tableau.name!r} claims {claim} {order} but fails the order-{nodes} condition "
                    f"{condition} = {expected}: got {got}"
                )


def _dense_defect(tableau: Tableau, tree: Tree) -> tuple[int, Number] | None:
    """The first power of s in which a tree's dense condition fails, and by how much; None where it holds."""
    phi, nodes, dense = elementary_weights(tableau.a, tree), n_nodes(tree), tableau.b_dense or ()
    for power in range(1, max(nodes, *(len(p) for p in dense), 0) + 1):
        got = dot([p[power - 1] if power <= len(p) else Fraction(0) for p in dense], phi)
        expected = Fraction(int(power == nodes), density(tree))
        if not _close(got, expected):
            return power, got - expected
    return None


def _row(text: str) -> tuple[Number, ...]:
    """Numbers from text; a word with a decimal point is a published decimal and becomes a float."""
    return tuple(float(word) if "." in word else Fraction(word) for word in text.split())


def _rows(text: str) -> tuple[tuple[Number, ...], ...]:
    return tuple(_row(line) for line in text.split(";"))


def _quadratic(b: Sequence[Number]) -> tuple[Polynomial, ...]:
    """b_i(s) = s^2 b_i, and the rest of s on the first stage: order 2 wherever b has order 2."""
    return tuple((Fraction(i == 0), weight - (i == 0)) for i, weight in enumerate(b))


def _hermite(b: Sequence[Number], bump: Sequence[Number] | None = None) -> tuple[Polynomial, ...]:
    """Cubic Hermite polynomial from first to last stage of an FSAL scheme, plus `bump_i s^2 (1 - s)^2`."""
    rows = []
    for i, weight in enumerate(b):
        first, last, extra = int(i == 0), int(i == len(b) - 1), bump[i] if bump else Fraction(0)
        quadratic = 3 * weight - 2 * first - last + extra
        rows.append((Fraction(first), quadratic, first + last - 2 * weight - 2 * extra, extra))
    return tuple(rows)


def _catalogue() -> Iterator[Tableau]:
    yield Tableau("euler", ((),), _row("1"), _row("0"), 1, b_dense=_rows("1"))
    b = _row("0 1")
    yield Tableau("midpoint", _rows("; 1/2"), b, _row("0 1/2"), 2, b_dense=_quadratic(b))
    b = _row("1/2 1/2")
    yield Tableau("heun", _rows("; 1"), b, _row("0 1"), 2, b_dense=_quadratic(b))
    yield Tableau("heun_euler", _rows("; 1"), b, _row("0 1"), 2, _row("-1/2 1/2"), 1, _quadratic(b))
    b = _row("1/4 3/4")
    yield Tableau("ralston", _rows("; 2/3"), b, _row("0 2/3"), 2, b_dense=_quadratic(b))
    a, b = _rows("; 1/2; 1/256 255/256"), _row("1/512 255/256 1/512")
    yield Tableau("fehlberg21", a, b, _row("0 1/2 1"), 2, _row("-1/512 0 1/512"), 1, _quadratic(b))
    # Four order conditions leave four stages no other interpolant of order 3 than these two.
    a, b = _rows("; 1/2; 0 1/2; 0 0 1"), _row("1/6 1/3 1/3 1/6")
    dense = _rows("1 -3/2 2/3; 0 1 -2/3; 0 1 -2/3; 0 -1/2 2/3")
    yield Tableau("rk4", a, b, _row("0 1/2 1/2 1"), 4, b_dense=dense)
    a, b = _rows("; 1/3; -1/3 1; 1 -1 1"), _row("1/8 3/8 3/8 1/8")
    dense = _rows("1 -15/8 1; 0 15/8 -3/2; 0 3/8; 0 -3/8 1/2")
    yield Tableau("rk4_38", a, b, _row("0 1/3 2/3 1"), 4, b_dense=dense)
    a, b = _rows("; 1/2; 0 3/4; 2/9 1/3 4/9"), _row("2/9 1/3 4/9 0")
    yield Tableau("bosh3", a, b, _row("0 1/2 3/4 1"), 3, _row("-5/72 1/12 1/9 -1/8"), 2, _hermite(b))
    yield _dopri5()
    yield _tsit5()


def _dopri5() -> Tableau:
    """Dormand and Prince (1980); dense output by Shampine, as in Hairer, Norsett, Wanner I, sec. II.6."""
    a = _rows(
        "; 1/5; 3/40 9/40; 44/45 -56/15 32/9; 19372/6561 -25360/2187 64448/6561 -212/729;"
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656; 35/384 0 500/1113 125/192 -2187/6784 11/84"
    )
    b = (*a[-1], Fraction(0))
    error = _row("71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40")
    bump = _row(
        "-12715105075/11282082432 0 87487479700/32700410799 -10690763975/1880347072"
        " 701980252875/199316789632 -1453857185/822651844 69997945/29380423"
    )
    return Tableau("dopri5", a, b, _row("0 1/5 3/10 4/5 8/9 1 1"), 5, error, 4, _hermite(b, bump))


def _tsit5() -> Tableau:
    """Tsitouras (2011), Computers & Mathematics with Applications 62, 770-775, with its dense output."""
    a = _rows(
        "; 161/1000; -0.00848065549235698854 0.33548065549235698854;"
        "2.89715305710549343213 -6.35944848997507484315 4.36229543286958141102;"
        "5.32586482843925660443 -11.7488835640628278777 7.49553934288983620830 -0.0924950663617552492565;"
        "5.86145544294642002866 -12.9209693178471092917 8.15936789857615864318 -0.0715849732814009972245"
        " -0.0282690503940683829091;"
        "0.0964607668180652295182 1/100 0.479889650414499574775 1.37900857410374189319"
        " -3.29006951543608067990 2.32471052409977398242"
    )
    b = (*a[-1], Fraction(0))
    c = _row("0 161/1000 327/1000 9/10 0.980025540904509685730 1 1")
    error = _row(
        "0.00178001105222577714 0.000816434459656746920 -0.00788087801026199600 0.144711007173262910"
        " -0.582357165452555230 0.458082105929186950 -1/66"
    )
    # The published factors, multiplied out.
    dense = _rows(
        "1 -2.763706197274825911 2.913255461821912744 -1.0530884977290216; 0 0.1317 -0.2234 0.1017;"
        "0 3.930296236894751529 -5.941033872131504735 2.490627285651252793;"
        "0 -12.41107716693367698 30.33818863028232160 -16.54810288924490272;"
        "0 37.50931341651103919 -88.17890489476640110 47.37952196281928122;"
        "0 -27.89652628919728781 65.09189467479367153 -34.87065786149660974; 0 1.5 -4 2.5"
    )
    return Tableau("tsit5", a, b, c, 5, error, 4, dense)


def _schemes() -> dict[str, Tableau]:
    schemes = {tableau.name: tableau for tableau in _catalogue()}
    return schemes | {"rk2": schemes["heun"]}


SCHEMES: Mapping[str, Tableau] = MappingProxyType(_schemes())
"""The catalogue. `rk2` is another key of `heun`; `fehlberg21` is Fehlberg's pair, carrying order 2 on."""


def get_tableau(scheme: str | Tableau) -> Tableau:
    """The tableau of a scheme of the catalogue; a tableau passes unchanged.

    Raises:
        ValueError: the key is not one of `SCHEMES`.

    Example:
        >>> get_tableau("rk4").b
        (Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6))
    """
    if isinstance(scheme, Tableau):
        return scheme
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme must be a Tableau or one of {', '.join(sorted(SCHEMES))}; got {scheme!r}")
    return SCHEMES[scheme]
