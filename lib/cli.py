"""A script's constants from the command line and from presets, and errors in one line."""
import ast
import difflib
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

from lib.distributed import exit_with_error, rank

from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "estimate_value", "train_apo", "evaluate")
MAY_BE_NEGATIVE = {"beta1"}


def configure(script, base=None, without=()):
    """A script's constants, with what the command line changes, as attributes of one object.

        python train_apo.py config/math.py config/7b.py --lr=2e-6

    Constants are the `name = value` lines at the top of a script. A preset is a file of such lines
    for all stages: a stage ignores the constants that it does not have. A later preset overrides an
    earlier one, and --name=value overrides all.
    script: its path; base: the path of a script whose constants this one has, too, but for those
    in `without`. Exits with one line on an unknown name, a wrong type or a negative number.
    """
    constants = {name: value for name, value in (constants_of(base) if base else {}).items()
                 if name not in without} | constants_of(script)
    presets, options = ([a for a in sys.argv[1:] if a.startswith("-") == is_option]
                        for is_option in (False, True))
    if "-h" in options or "--help" in options:
        if rank == 0:
            print_help(script, base, constants)
        sys.exit(0)
    stages = [*(REPOSITORY / f"{name}.py" for name in STAGES), *REPOSITORY.glob("baselines/*.py")]
    known = set(constants).union(*map(constants_of, stages if presets else ()))
    for preset in presets:
        if not Path(preset).is_file():
            exit_with_error(f"{preset}: neither --name=value nor a preset file")
        for name, value in constants_of(preset, is_preset=True).items():
            override(constants, preset, name, value, known)
    for option in options:
        name, equals, value = option.removeprefix("--").partition("=")
        if not equals:
            exit_with_error(f"{option}: constants are set as --{name}=value")
        if type(constants.get(name)) is not str:
            with suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
        override(constants, option, name, value, set(constants))
    return SimpleNamespace(**constants)


def constants_of(path, is_preset=False):
    """{name: value} of the numbers, strings and booleans that a file assigns to lower-case names at
    its top level. Nothing is executed. Exits with one line if a preset has anything else."""
    mistake = "a preset has only lines of name = a number, string or boolean"
    try:
        body = ast.parse(Path(path).read_text()).body
    except SyntaxError as e:
        exit_with_error(f"{path}, line {e.lineno}: {mistake}")
    found = {}
    for node in body:
        try:
            [name], value = [target.id for target in node.targets], ast.literal_eval(node.value)
        except (AttributeError, ValueError):  # no assignment, to several names, of an expression
            if is_preset:
                exit_with_error(f"{path}, line {node.lineno}: {mistake}")
        else:
            if is_preset or name.islower() and isinstance(value, bool | int | float | str):
                found[name] = value
    return found


def override(constants, where, name, value, known):
    """Set constants[name], or exit with one line that begins with `where`."""
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "--help lists them"
        exit_with_error(f"{where}: there is no constant {name!r}; {hint}")
    if name not in constants:
        return  # another stage's
    kind = type(constants[name])
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        exit_with_error(f"{where}: {name} is of type {kind.__name__}, such as "
                        f"{constants[name]!r}; got {value!r}")
    if kind is str:  # no shell replaces the ~ of --out=~/run
        value = ",".join(map(os.path.expanduser, value.split(",")))
    if kind in (int, float) and not value >= 0 and name not in MAY_BE_NEGATIVE:
        exit_with_error(f"{where}: {name} can't be {value}")
    constants[name] = value


def print_help(script, base, constants):
    """The script's docstring, and the lines of its constants with their comments."""
    print(ast.get_docstring(ast.parse(Path(script).read_text())), end="\n\n")
    for path in filter(None, (script, base)):
        for line in Path(path).read_text().split("# " + "-" * 20)[0].splitlines():
            if line.startswith("# ") or constants.pop(line.split(" = ")[0], None) is not None:
                print(line)


def check(condition, message):
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_settings(dtype, **at_least_one):
    """Raises ValueError, naming the constant, for a value that no run can have."""
    check(dtype in ("float32", "bfloat16"), f"--dtype={dtype}: it must be float32 or bfloat16")
    for name, value in at_least_one.items():
        check(value >= 1, f"--{name}={value}: it must be at least 1")


@contextmanager
def one_line_errors():
    """Turn OSError and ValueError into a one-line exit with status 1. Also a decorator."""
    try:
        yield
    except (OSError, ValueError) as e:
        sys.exit(f"error: {' '.join(str(e).split())}")


def progress(iterable, **kwargs):
    """tqdm on rank 0. A log file gets a line every 30 seconds instead of five a second."""
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(iterable, mininterval=interval, disable=rank > 0, **kwargs)
