"""Rows of the ContinuousNet paper."""

from experiments.results.rows import Row

PENDULUM = "results/pendulum/pendulum.json"
DAYS = "a week of two cores for Euler (13 images a second), 608 minutes on one V100 refined under RK4, by the paper"
WIDE = "11 days of two cores for Euler (9 images a second)"
ROWS = (
    Row(
        "Fig. 3",
        "a pendulum's one-step models over time",
        "Euler's leaves the orbit at any step but its own",
        "python -m experiments.continuous_net.pendulum",
        PENDULUM,
        "errors at the end under Euler's own step {errors/euler>euler/*/13|median:.1e}, at half of it "
        "{errors/euler>euler/*/16|median:.1e}, of RK4's {errors/rk4>rk4/*/13|median:.1e} and "
        "{errors/rk4>rk4/*/16|median:.1e}",
        seeds="{one_step_loss/euler|count} seeds, medians",
        minutes="{seconds|x 0.0166667:.1f}",
    ),
    Row(
        "Fig. 4a",
        "convergence under the scheme of training",
        "slopes 1, 2, 4; Euler's model is best at its own step and worse at any smaller one, the others are flat",
        "python -m experiments.continuous_net.pendulum",
        PENDULUM,
        "slopes {slopes/euler/order:.2f}, {slopes/midpoint/order:.2f}, {slopes/rk4/order:.2f}; at half of the step "
        "{summary/0/at_half|median:.3g}, {summary/1/at_half|median:.2g}, {summary/2/at_half|median:.2g} times as wrong",
        seeds="{one_step_loss/euler|count} seeds, medians",
        minutes="{seconds|x 0.0166667:.1f}",
    ),
    Row(
        "Fig. 4b",
        "the same in another scheme",
        "Euler's model is much worse in RK4 at any step; midpoint's and RK4's may be exchanged",
        "python -m experiments.continuous_net.pendulum",
        PENDULUM,
        "Euler's model in RK4, error at five, two and one times its step "
        "{errors/euler>rk4/*/6|median:.2g}, {errors/euler>rk4/*/10|median:.2g}, {errors/euler>rk4/*/13|median:.2g}; "
        "in Euler {errors/euler>euler/*/6|median:.2g}, {errors/euler>euler/*/10|median:.2g}, "
        "{errors/euler>euler/*/13|median:.2g}; midpoint's in RK4 "
        "{summary/1/swapped_at_own_step/rk4|median:.2g} times its own error",
        seeds="{one_step_loss/euler|count} seeds, medians",
        minutes="{seconds|x 0.0166667:.1f}",
        why="Not at any step: it is better at five times the step and equal at two, as it has learned an equation of its "
        "own, whose flow RK4 finds at every step, while Euler at long steps is wrong by its own error",
    ),
    Row(
        "Table 1a",
        "accuracy on CIFAR-10 under other solvers",
        "Euler 93.84 %, RK4 refined 93.57 (Euler 93.55, RK4-3/8 at 11 and 6 steps 93.44 and 92.28), ResNet-200 93.84",
        "python -m experiments.train cifar10_small",
        "results/cifar10_small/run.json",
        "{results/test_accuracy|x 100:.1f} %, refined to M = N_t = {config/refine_epochs|count|x 2:.0f}",
        "widths {config/widths/0} to {config/widths/2}, {config/limit} images, {config/epochs} epochs",
        "seed {config/seed}",
        "{results/train_seconds|x 0.0166667:.1f}",
    ),
    Row(
        "Table 1b",
        "accuracy on CIFAR-100, wide",
        "Euler 78.80 %, RK4 refined 77.99 (RK4-3/8 at 4 steps 76.19), Wide-ResNet 79.04",
        "python -m experiments.train cifar100_wide",
        takes=WIDE,
    ),
    Row(
        "Fig. 7",
        "training with refinement: seconds an epoch, accuracy, loss",
        "16 s an epoch at N_t = 1, 394 at 32; 608 minutes against 1053",
        "python -m experiments.train cifar10_small",
        "results/cifar10_small/run.json",
        "training loss {metrics/0/train_loss:.2f} in the first epoch, {metrics/*/train_loss|last:.2f} in the last",
        "widths {config/widths/0} to {config/widths/2}, {config/limit} images, {config/epochs} epochs",
        "seed {config/seed}",
        "{results/train_seconds|x 0.0166667:.1f}",
    ),
    Row(
        "sec. 5.2",
        "steps that the continuous adjoint needs",
        "N_t >= 3 M to train to a high accuracy",
        "python -m experiments.continuous_net.adjoint_steps",
        "results/adjoint_steps/adjoint_steps.json",
        "N_t / M until gradients are within a hundredth of the steps' own, RK4, four rough intervals: "
        "{needed/[scheme=rk4&reading=own&kind=rough&strength=0.5&n_basis=4]/1 %} where eps / M is a half and "
        "{needed/[scheme=rk4&reading=own&kind=rough&strength=2.0&n_basis=4]/1 %} where it is two; by floor(M t) "
        "{needed/[scheme=rk4&reading=clock&kind=rough&strength=0.5&n_basis=4]/1 %} and "
        "{needed/[scheme=rk4&reading=clock&kind=rough&strength=2.0&n_basis=4]/1 %}",
        "gradients of a perceptron, not training",
        "medians of {settings/seeds} seeds",
        why="No number holds for all: it depends on how far an interval carries the state, on the scheme and on which "
        "interval a stage at its end reads",
    ),
    Row(
        "Fig. 8",
        "weights over depth",
        "smooth under RK4, rough under Euler",
        "python -m experiments.figures weights runs/cifar10 runs/cifar10_euler",
        takes=DAYS,
    ),
    Row(
        "Fig. 9",
        "accuracy under other solvers",
        "Euler's weights degrade sharply at any other scheme or N_t, RK4's barely",
        "python -m experiments.quickstart",
        "results/quickstart/digits.json",
        "RK4's weights keep {rows/[n_steps=8]/accuracy|min|x 100:.1f} % under the worst of four schemes at twice the steps, of "
        "{rows/[scheme=rk4&n_steps=4]/accuracy|x 100:.1f}",
        "digits, {n_images} test images, N_t = {trained/n_steps}",
        "seed {seed}",
    ),
    Row(
        "Fig. 9",
        "the same, Euler's weights",
        "degrade sharply",
        "python -m experiments.quickstart",
        "results/quickstart/digits_euler.json",
        "{rows/[n_steps=8]/accuracy|min|x 100:.1f} % under the worst of four schemes at twice the steps, "
        "{rows/[scheme=euler&n_steps=8]/accuracy|x 100:.1f} under their own, of "
        "{rows/[scheme=euler&n_steps=4]/accuracy|x 100:.1f}",
        "digits, {n_images} test images, N_t = {trained/n_steps}",
        "seed {seed}",
    ),
    Row(
        "Fig. 9",
        "the same by one difference at a time, over seeds",
        "it is the scheme",
        "python -m experiments.tied",
        "results/tied/tied.json",
        "points lost by RK4 refined {summary/rk4/lost/0:.1f} ({summary/rk4/lost/1:.1f} to {summary/rk4/lost/2:.1f}), by "
        "Euler refined {summary/euler/lost/0:.1f} ({summary/euler/lost/1:.1f} to {summary/euler/lost/2:.1f}, and "
        "{summary/euler/n_failed} seeds that left the finite numbers), by Euler with all steps from the start, a ResNet, {summary/euler_whole/lost/0:.1f} "
        "({summary/euler_whole/lost/1:.1f} to {summary/euler_whole/lost/2:.1f})",
        "digits, {rows/*/n_images|max} test images; the worst of other solvers with as many steps or more",
        "{summary/rk4/n_seeds} seeds, medians (and ranges)",
        why="Most of it is the refinement: Euler's weights that had it are mostly hardly tied, though some are, and its "
        "training is less sure",
    ),
    Row(
        "Fig. 10",
        "Tiny-ImageNet, midpoint and Euler",
        "about 40 %, midpoint's weights may be swapped",
        "python -m experiments.train tiny_imagenet_midpoint",
        takes="four times as long as Table 1b, and the data",
    ),
    Row(
        "Fig. 11a",
        "CIFAR-10 without skip-init",
        "Euler's weights degrade less",
        "python -m experiments.train fig11a",
        takes=DAYS,
    ),
    Row("Fig. 11b", "CIFAR-100, wide, without skip-init", "the same", "python -m experiments.train fig11b", takes=WIDE),
    Row(
        "Fig. 11c",
        "32-64-128 at N_t = 16 without skip-init",
        "the same",
        "python -m experiments.train fig11c",
        takes="about as long as Fig. 11b",
    ),
)
