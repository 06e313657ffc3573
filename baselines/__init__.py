"""Other algorithms with the loop of train_apo.py, to be read beside it. Each takes its start-up and
the constants that are not its own from there."""
import train_apo
from lib import cli


def configure(script):
    """The script's own constants, and those of train_apo.py that are not of A*-PO alone."""
    return cli.configure(script, train_apo.__file__, without=(
        "beta2", "filter_incorrect", "off_policy", "stage_1_steps"))
