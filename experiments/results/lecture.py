"""Rows of the lecture."""

from experiments.results.rows import Row

REPORT = "results/gradient_report/gradient_report.json"
ROWS = (
    Row(
        "Memory",
        "of a thousand Euler steps, 64x64x32 in batches of 32",
        "15.6 GiB of states under naive backpropagation",
        "python -m experiments.aca.gradient_report",
        REPORT,
        "{lecture/[method=Direct&n_steps=1000]/temporary_bytes|x 9.3132e-10:.0f} GiB with the activations, by `Direct`; "
        "{lecture/[method=ACA, 32 states&n_steps=1000]/temporary_bytes|x 9.5367e-7:.0f} MiB by `ACA`, "
        "{lecture/[method=Backsolve&n_steps=1000]/temporary_bytes|x 9.5367e-7:.0f} MiB by `Backsolve`",
        why="The lecture counts states alone",
    ),
    Row(
        "Accuracy",
        "of the gradients of each method",
        "the adjoint's is not that of the forward program",
        "python -m experiments.aca.gradient_report",
        REPORT,
        "relative errors `Direct` {rows/[method=Direct]/error:.2g}, `ACA` {rows/[method=ACA, all states]/error:.2g}, "
        "`Backsolve` {rows/[method=Backsolve]/error:.2g}",
    ),
)
