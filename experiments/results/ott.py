"""Rows of Ott's paper."""

from experiments.results.rows import Row

LESS = "{used/iterations} of {paper/iterations} iterations at a rate of {used/learning_rate:g}"
UNIFORM = LESS + ", from uniform initial weights"
IMAGES = UNIFORM + ", batch {used/batch_size}, {settings/n_train} images"


def too_early(task: str, paper: str, finest: str) -> Row:
    """A task on which no network was tied after so few iterations."""
    return Row(
        "Table 1, Figs 17-19",
        f"critical step, {task}",
        paper,
        f"python -m experiments.ott grid {task}",
        f"results/ott/grid_{task}.json",
        "no number of steps is tied, {rows/*/loss|max|x 100:.1f} points are lost at most; "
        f"{{rows/{finest}/accuracy|x 100:.0f}} % at the finest, {{rows/{finest}/n_steps}} steps",
        IMAGES,
        "{settings/seeds} seeds",
        "{seconds|x 0.0166667:.0f}",
        "Too short to contradict: coarse networks are not yet trained far enough to leave their flow",
    )


def grid(of: str, task: str, paper: str) -> Row:
    """Critical steps of a task."""
    return Row(
        of,
        f"critical step, {task}",
        paper,
        f"python -m experiments.ott grid {task}",
        f"results/ott/grid_{task}.json",
        "Euler's critical step at {critical_nfe/euler/0} to {critical_nfe/euler/1} field evaluations, by the paper's test "
        "{critical_nfe/euler, midpoint alone/0} to {critical_nfe/euler, midpoint alone/1}; RK4's {critical_nfe/rk4/0} to "
        "{critical_nfe/rk4/1}. Of {settings/seeds} seeds, {rows/*/trained|sum} of {rows/*/trained|count} networks trained",
        LESS if task == "spheres2" else UNIFORM,
        "{settings/seeds} seeds",
        "{seconds|x 0.0166667:.0f}",
    )


def adapted(task: str, paper: str, why: str = "") -> Row:
    """Algorithm 1 on a task."""
    return Row(
        "Table 1, Figs 5, 6",
        f"algorithm 1, {task}",
        paper,
        f"python -m experiments.ott adapt {task}",
        f"results/ott/adapt_{task}.json",
        "{rows/algorithm 1/nfe_per_iteration|mean:.1f} field evaluations, {rows/algorithm 1/accuracy|mean|x 100:.1f} % "
        "({rows/algorithm 1/accuracy|min|x 100:.1f} to {rows/algorithm 1/accuracy|max|x 100:.1f}); as the code reverts "
        "{rows/with revert (code)/nfe_per_iteration|mean:.1f}, {rows/with revert (code)/accuracy|mean|x 100:.1f}; ours that "
        "settles {rows/settled (ours)/nfe_per_iteration|mean:.1f}, {rows/settled (ours)/accuracy|mean|x 100:.1f}",
        LESS if task == "spheres2" else UNIFORM,
        "{settings/seeds} seeds",
        "{seconds|x 0.0166667:.0f}",
        why,
    )


ROWS = (
    grid("Table 1, Figs 1, 3, 4", "spheres2", "65-129, 99.2 %"),
    grid("Table 1, Figs 1, 3, 4", "landscape", "33-65, 79.0 %"),
    too_early("mnist", "9-16, 96.5 %", "euler 16"),
    too_early("cifar10", "17-33, 54.7 %", "euler 32"),
    grid("Figs 17-19", "spheres3", "in a figure only"),
    grid("Figs 17-19", "spheres10", "in a figure only"),
    Row(
        "Figs 17-19",
        "critical step, spheres900",
        "in a figure only",
        "python -m experiments.ott grid spheres900",
        "results/ott/grid_spheres900.json",
        "no seed trains: {rows/euler 16/test/euler 16|max|x 100:.0f} % at most",
        UNIFORM,
        "{settings/seeds} seeds",
        "{seconds|x 0.0166667:.0f}",
    ),
    adapted("spheres2", "100.5, 98.9 %"),
    adapted("landscape", "43.3, 76.5 %"),
    Row(
        "Table 1, Figs 5, 6",
        "algorithm 1, MNIST and CIFAR-10",
        "9.8, 95.6 %; 21.9, 55.0 %",
        "python -m experiments.ott adapt mnist",
        takes="25 minutes a controller at 150 of 7,020 iterations; days in full",
    ),
    Row(
        "Figs 20, 21",
        "adaptive solvers at other tolerances",
        "coarsely trained ones lose at finer tolerances",
        "python -m experiments.ott tolerance spheres2",
        "results/ott/tolerance_spheres2.json",
        "trained with Fehlberg2(1) at a tolerance of {rows/fehlberg21 0.1/tolerance:g}: "
        "{rows/fehlberg21 0.1/test/0.1|mean|x 100:.0f} % there, {rows/fehlberg21 0.1/test/0.0001|mean|x 100:.0f} % at a "
        "thousandth of it; at {rows/fehlberg21 0.0001/tolerance:g}: {rows/fehlberg21 0.0001/test/0.0001|mean|x 100:.0f} and "
        "{rows/fehlberg21 0.0001/test/1e-06|mean|x 100:.0f} %",
        UNIFORM,
        "{settings/seeds} seeds",
        "{seconds|x 0.0166667:.0f}",
    ),
    Row(
        "Fig. 2",
        "the data",
        "-",
        "python -m experiments.ott.figures",
        "results/ott/grid_landscape.json",
        "drawn from the closed forms",
    ),
    Row(
        "Fig. 22",
        "trajectories that cross",
        "coarse Euler's cross",
        "python -m experiments.ott grid spheres2",
        "results/ott/grid_spheres2.json",
        "at the coarsest drawn, of eight steps, {rows/euler 8/crossings|min} to "
        "{rows/euler 8/crossings|max} crossings; of sixty-four {rows/euler 64/crossings|min} to "
        "{rows/euler 64/crossings|max}",
        LESS,
        "{settings/seeds} seeds",
        "{seconds|x 0.0166667:.0f}",
    ),
)
