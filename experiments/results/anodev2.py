"""Rows of the ANODEV2 paper."""

from experiments.configs.anodev2 import ACCURACY, PARAMETERS
from experiments.results.rows import Row

RESNET4 = "results/anodev2/resnet4.json"
HOURS = {
    "alexnet": "7 to 24 hours a form and seed on two cores",
    "resnet10": "15 to 58 hours a form and seed on two cores",
}


def theirs(form: str) -> str:
    """The paper's accuracies of the three networks."""
    return ", ".join(
        f"{network} {cells[form][2]} ({cells[form][0]} to {cells[form][1]})" for network, cells in ACCURACY.items()
    )


def accuracy(of: str, form: str, name: str) -> Row:
    """A column of the tables of accuracy, as far as ResNet-4 has been run."""
    return Row(
        of,
        f"{name}, test accuracy",
        theirs(form),
        "python -m experiments.anodev2 resnet4",
        RESNET4,
        f"resnet4 {{forms/{form}/test_accuracy|mean|x 100:.1f}} ({{forms/{form}/test_accuracy|min|x 100:.1f}} to "
        f"{{forms/{form}/test_accuracy|max|x 100:.1f}}) %",
        "resnet4 alone, {n_train} training and {n_test} test images, {forms/baseline/training_loss|count} epochs",
        "{n_seeds} seeds",
        f"{{forms/{form}/seconds_per_epoch|x 0.0833333:.1f}}",
    )


ROWS = (
    Row(
        "Fig. 1", "a learned kernel as it evolves", "-", "python -m experiments.anodev2 alexnet", takes=HOURS["alexnet"]
    ),
    Row(
        "Fig. 3",
        "a Gaussian under diffusion, advection and reaction",
        "pictures at three times",
        "python -m experiments.anodev2.rda",
        "results/anodev2_rda/anodev2_rda.json",
        "the exact step is within {linear/*/diffrax|max:.1e} of a fine solve and {linear/*/closed_form|max:.1e} of "
        "the closed form",
    ),
    Row(
        "Fig. 4",
        "kernels of ResNet-4",
        "-",
        "python -m experiments.anodev2 resnet4",
        RESNET4,
        "a picture of configuration two, of training that ends at {forms/configuration_2/test_accuracy|mean|x 100:.1f} %",
        "{n_train} images, {forms/baseline/training_loss|count} epochs",
        "{n_seeds} seeds",
    ),
    Row("Fig. 5", "kernels of ResNet-10", "-", "python -m experiments.anodev2 resnet10", takes=HOURS["resnet10"]),
    accuracy("Table 1", "baseline", "baseline"),
    accuracy("Table 1", "configuration_1", "configuration 1"),
    accuracy("Table 2", "configuration_2", "configuration 2"),
    accuracy("Table 4", "neural_ode", "Neural ODE"),
    Row(
        "Table 3",
        "parameters of ResNet-4",
        ", ".join(f"{form.replace('_', ' ')} {n}K" for form, n in PARAMETERS["resnet4"].items()),
        "python -m experiments.anodev2.parameters",
        RESNET4,
        "{forms/baseline/n_parameters}, {forms/neural_ode/n_parameters}, {forms/configuration_1/n_parameters}, "
        "{forms/configuration_2/n_parameters}",
        "resnet4 alone; the command prints all twelve",
    ),
    Row(
        "Tables 1, 2, 4",
        "AlexNet",
        "see above",
        "python -m experiments.anodev2 alexnet --full --n-seeds 5",
        takes=HOURS["alexnet"],
    ),
    Row(
        "Tables 1, 2, 4",
        "ResNet-10",
        "see above",
        "python -m experiments.anodev2 resnet10 --full --n-seeds 5",
        takes=HOURS["resnet10"],
    ),
    Row(
        "eq. 7",
        "the gradient against its optimality system",
        "they agree as the step goes to zero",
        "python -m experiments.anodev2.kkt",
        "results/anodev2_kkt/anodev2_kkt.json",
        "by order "
        "{rows/[scheme=euler]/order_w0|last:.2f} under Euler and {rows/[scheme=heun]/order_w0|last:.2f} under Heun, at the "
        "finest steps",
    ),
)
