"""Rows of the ACA paper."""

from experiments.results.rows import Row

NODE18 = (
    "12 days of two cores for 90 epochs, 46 for 350 (7.3 s a step of 32 images); 9 hours for 90 on one GTX 1080 Ti, "
    "by the paper"
)
ERRORS, TRIP = "results/gradient_error/gradient_error.json", "results/round_trip/round_trip.json"
REPORT, ORDER = "results/gradient_report/gradient_report.json", "results/gradient_order/gradient_order.json"
SHORT = "widths {config/widths/0} to {config/widths/3}, {config/limit} images, {config/epochs} epochs"


def last_error(k: str, method: str) -> str:
    """The error of a gradient method at the longest time, as a place."""
    return f"{{rows/[k={k}&T=10.0&dtype=float64&method={method}]/relative_error|x 100:.2g}}"


def errors_at_the_end(k: str) -> str:
    """Those of the paper's three methods."""
    return ", ".join(
        f"{name} {last_error(k, method)} %"
        for name, method in (("naive", "Naive"), ("adjoint", "Backsolve"), ("ACA", "ACA"))
    )


def rejecting(case: str, tolerance: float) -> str:
    """The errors of ACA and naive, and the depths of their graphs, of a family of solves that reject."""
    error = lambda method: f"{{cases/[case={case}&tolerance={tolerance}&method={method}]/error:.1e}}"
    depth = lambda method: f"{{costs/[case={case}&method={method}]/backward_vjps}}"
    return f"ACA {error('ACA')} at depth {depth('ACA')}, naive {error('Naive')} at {depth('Naive')}"


def hopper(method: str) -> str:
    """The test errors of one method's latent ODEs, in hundredths, with 10, 20 and 50 % observed."""
    return " ".join(f"{{rows/[method={method}&observed={share}]/test_mse|x 100:.2f}}" for share in (0.1, 0.2, 0.5))


def in_tolerance(rate: float, method: str) -> str:
    """The order of a method's error in the tolerance, under Dopri5."""
    return f"{{orders_in_tolerance/[scheme=dopri5&rate={rate}&method={method}]/slope:.2f}}"


ROWS = (
    Row(
        "Table 1",
        "cost of the gradient methods",
        "counts: naive depth N_t m, adjoint N_t + N_r, ACA N_t (m + 1)",
        "python -m experiments.aca.gradient_report",
        REPORT,
        "ACA {rows/[method=ACA, all states]/forward_evaluations} evaluations forward, "
        "{rows/[method=ACA, all states]/backward_evaluations} back; adjoint "
        "{rows/[method=Backsolve]/forward_evaluations} and {rows/[method=Backsolve]/backward_evaluations}",
    ),
    Row(
        "Figs 4, 9",
        "van der Pol there and back",
        "the reverse solve leaves the orbit",
        "python -m experiments.aca.round_trip",
        TRIP,
        "at the defaults of ode45 it returns {van_der_pol/[rtol=0.001]/largest|min:.2g} to "
        "{van_der_pol/[rtol=0.001]/largest|max:.2g} from the start, at a tolerance of "
        "{van_der_pol/*/rtol|min:.0e} within {van_der_pol/[rtol=1e-09]/largest|max:.0e}",
    ),
    Row(
        "Fig. 5",
        "an image there and back",
        "the reconstruction differs visibly",
        "python -m experiments.aca.round_trip",
        TRIP,
        "error {photograph/[dtype=float64]/root_mean_square|max|x 100:.2g} % in float64, "
        "{photograph/[dtype=float32]/root_mean_square|max|x 100:.2g} % in float32",
    ),
    Row(
        "Fig. 6",
        "error of the gradient against time, growth",
        "ACA best, naive worst at long times",
        "python -m experiments.aca.gradient_error",
        ERRORS,
        "at the longest time, in float64: " + errors_at_the_end("1.0"),
        why="ACA is not best: no solve of this toy rejects a step, so that the deep graph through rejected trials, which "
        "the paper names as the reason, is never there",
    ),
    Row(
        "Fig. 6",
        "the same, decay",
        "the same",
        "python -m experiments.aca.gradient_error",
        ERRORS,
        "at the longest time, in float64: " + errors_at_the_end("-1.0"),
        why="The adjoint is worst by far, as its reverse solve grows; naive and ACA differ for the reason above",
    ),
    Row(
        "sec. 3.3",
        "naive's graph where trials are rejected, which Fig. 6 is meant to show",
        "deeper by the rejected trials, and less accurate for it",
        "python -m experiments.aca.gradient_error",
        ERRORS,
        f"a stiff start: {rejecting('stiff_start', 0.0001)}; a stiff van der Pol: {rejecting('van_der_pol', 0.0001)}; a "
        f"first step too large: {rejecting('first_step', 0.0001)}",
        seeds="medians of {settings/starts} starts",
        why="Deeper it is; less accurate in three families of four: of the stiff van der Pol oscillator naive is the "
        "nearer at five tolerances of eight, for a reason that is not known",
    ),
    Row(
        "Theorem 3.2",
        "order of the errors of the adjoint method",
        "what it comes back to is off by h^p, for p odd or even; not checked with numbers",
        "python -m experiments.aca.gradient_order",
        ORDER,
        "orders of the start that comes back {orders_in_h/[scheme=euler]/returned:.2f}, "
        "{orders_in_h/[scheme=midpoint]/returned:.2f}, {orders_in_h/[scheme=bosh3]/returned:.2f} and "
        "{orders_in_h/[scheme=rk4]/returned:.2f} for p from one to four, of its gradients "
        "{orders_in_h/[scheme=euler]/Backsolve:.2f}, {orders_in_h/[scheme=midpoint]/Backsolve:.2f}, "
        "{orders_in_h/[scheme=bosh3]/Backsolve:.2f} and {orders_in_h/[scheme=rk4]/Backsolve:.2f}; in the tolerance "
        f"ACA {in_tolerance(1.0, 'ACA')} and Backsolve {in_tolerance(1.0, 'Backsolve')}, with stiff decay "
        f"ACA {in_tolerance(40.0, 'ACA')} and Backsolve none",
        why="An even order is one more on the way back: the paper does not carry the error at the end back to the start, "
        "where it cancels that of the way back",
    ),
    Row(
        "Fig. 7",
        "training of NODE18 by three methods, and ResNet18",
        "ACA 9 h, adjoint 18 h, naive more than 30 h",
        "python -m experiments.train node18_cifar10_90",
        takes=NODE18,
    ),
    Row(
        "Table 2",
        "test error on CIFAR-10",
        "ACA 4.85 %, adjoint 9.8, naive 9.3, ResNet18 6.98; RK23 4.92, RK45 5.29, Euler 5.52, RK2 5.27, RK4 5.24",
        "python -m experiments.train node18_small",
        "results/node18_small/run.json",
        "ACA {results/test_accuracy|x 100:.1f} % of accuracy; a linear classifier {linear/test_accuracy|x 100:.1f}",
        SHORT,
        "seed {config/seed}",
        "{results/train_seconds|x 0.0166667:.0f}",
    ),
    Row(
        "Table 2",
        "test error on CIFAR-100",
        "ACA 22.66 %, adjoint 30.6, naive 29.4, ResNet18 27.08",
        "python -m experiments.train node18_cifar100",
        takes=NODE18,
    ),
    Row(
        "Table 3",
        "reliability of training, CIFAR-10",
        "ICC1 of NODE18 .943-.945, of ResNet18 .932-.935; ICC1k .993-.994, .992-.993",
        "python -m experiments.aca.reliability node18_small --limit 1000 --epochs 3 --decay-epochs 2 --n-runs 5",
        "results/node18_small/reliability.json",
        "NODE18 ICC1 {all/icc1:.3f}, ICC1k {all/icc1k:.3f}; not beside ResNet18",
        SHORT,
        "{seeds|count} seeds",
    ),
    Row(
        "Table 3",
        "reliability, CIFAR-100",
        "NODE18 .767-.776, ResNet18 .759-.768",
        "python -m experiments.aca.reliability node18_cifar100_90",
        takes="ten times as long as Fig. 7",
    ),
    Row(
        "Table 6",
        "solvers exchanged after one Euler step",
        "Euler at 0.1 +4.84 points, RK2 +6.43, RK4 +6.47",
        "python -m experiments.train node18_cifar10_euler",
        takes="about 6 days of two cores",
    ),
    Row(
        "Table 7",
        "solvers exchanged after HeunEuler",
        "Euler +8.31 +1.57 +0.67 +0.57, RK4 +1.09 +0.48 +0.39 +0.37 points",
        "python -m experiments.aca.node18_swap runs/node18_small --images 1000",
        "results/node18_small/swap.json",
        "Euler {rows/[scheme=euler&n_steps=1]/error_increase:+.1f} {rows/[scheme=euler&n_steps=2]/error_increase:+.1f} "
        "{rows/[scheme=euler&n_steps=5]/error_increase:+.1f} {rows/[scheme=euler&n_steps=10]/error_increase:+.1f}, "
        "RK4 {rows/[scheme=rk4&n_steps=1]/error_increase:+.1f} {rows/[scheme=rk4&n_steps=2]/error_increase:+.1f} "
        "{rows/[scheme=rk4&n_steps=5]/error_increase:+.1f} {rows/[scheme=rk4&n_steps=10]/error_increase:+.1f} points",
        "a narrow network that errs on {error:.0f} %, {n_images} test images",
        "one run",
    ),
    Row(
        "Table 4, Figs 10-12",
        "latent ODEs on the hopper",
        "MSE x 1e-2 adjoint .47 .44 .40, naive .36 .30 .29, ACA .31 .27 .26, RNN 2.45 1.71 .79, GRU 1.97 1.42 .75",
        "python -m experiments.aca.latent_ode --observed 0.1 0.2 0.5 --gradient aca direct backsolve naive "
        "--net latent_ode rnn gru --width 100 --limit 1000 --epochs 40",
        "results/aca/latent_ode/latent_ode.json",
        f"adjoint {hopper('backsolve')}, naive {hopper('naive')}, ACA {hopper('aca')}, direct {hopper('direct')}; "
        f"RNN {hopper('rnn')}, GRU {hopper('gru')}; every trajectory's mean {{mse_of_means|x 100:.2f}}, in a unit of these "
        "trajectories, in which all are larger than in that of the whole set",
        "width {rows/0/config/width}, {rows/0/n_train} trajectories and {rows/0/config/epochs} epochs; beside other work",
        "one a cell",
        "{rows/*/train_seconds|sum|x 0.0166667:.0f}",
        "No latent ODE has learned in so few updates how a trajectory moves, while recurrent networks have begun to; nothing "
        "tells the methods apart",
    ),
    Row(
        "Table 4, Figs 10-12",
        "a latent ODE on the hopper, by ACA",
        "MSE x 1e-2 with half of the times observed .26",
        "python -m experiments.aca.latent_ode --observed 0.5 --gradient aca --epochs 24",
        "results/aca/latent_ode_whole/latent_ode.json",
        "{rows/0/test_mse|x 100:.2f}, and still falling; in validation {rows/0/curve/4/validation_mse|x 100:.2f} after as many "
        "updates as the row above has; every trajectory's mean {mse_of_means|x 100:.2f}",
        "width and data of the paper, {rows/0/config/epochs} epochs; beside other work",
        "one",
        "{rows/0/train_seconds|x 0.0166667:.0f}",
        "After as many updates as the row above has it had not come to the mean either: what the reduction lacks is updates",
    ),
    Row(
        "Tables 5, 8, Figs 8, 13-23",
        "three bodies",
        "MSE of ODE by ACA .0007, by adjoint and naive .0025, NODE by ACA .16, naive .21, adjoint 3.47, LSTM .59 and .49",
        "python -m experiments.aca.three_bodies --preset code",
        "results/aca/three_bodies/code_published.json",
        "ODE by ACA {rows/ode aca/mse|median:.1e}, adjoint {rows/ode backsolve/mse|median:.1e}, naive "
        "{rows/ode naive/mse|median:.1e}, reversible {rows/ode reversible/mse|median:.1e}, at worst "
        "{rows/ode aca/mse|max:.1e}, {rows/ode backsolve/mse|max:.1e}, {rows/ode naive/mse|max:.1e}, "
        "{rows/ode reversible/mse|max:.1e}; NODE by ACA {rows/node aca/mse|median:.1f}, adjoint "
        "{rows/node backsolve/mse|median:.1f}, naive {rows/node naive/mse|median:.1f}; LSTM "
        "{rows/lstm/mse|median:.2f}, augmented {rows/lstm_aug/mse|median:.2f}",
        "settings of the published code, in full; NODE as the paper sets it does not fit",
        "medians of {rows/ode aca/mse|count} seeds",
        why="A seed by ACA, by the adjoint and by the reversible scheme ends at masses that are a local minimum, by "
        "naive none; the others are right by every method",
    ),
)
