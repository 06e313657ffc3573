"""Constants from the command line and from presets, checks of settings, and errors in one line."""
import ast
import difflib
import sys
from contextlib import contextmanager
from pathlib import Path

from lib.distributed import exit_with_error, rank

from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent


def configure(script):
    """Override a script's constants, its lower-case numbers, strings and booleans.

        python train_apo.py config/math.py config/7b.py --lr=2e-6

    A preset is a file of `name = value` lines that serves all stages: a constant that only another
    stage has is skipped. A later preset overrides an earlier one, and --name=value overrides all.
    script: the caller's globals(). Returns {name: value} of all constants. Exits with one line on
    an unknown name, a value of the wrong type or a negative number.
    """
    constants = {name: script[name] for name in constants_of(script["__file__"])
                 if type(script[name]) in (bool, int, float, str)}
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        if rank == 0:
            print_help(script, constants)
        sys.exit(0)
    presets = [a for a in arguments if not a.startswith("--")]
    options = [a for a in arguments if a.startswith("--")]
    stages = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("baselines/*.py")]
    known = set(constants).union(*map(constants_of, stages)) if presets else set()
    for preset in presets:
        if not Path(preset).is_file():
            exit_with_error(f"{preset}: neither --name=value nor a preset file")
        for name, value in preset_values(preset):
            override(constants, preset, name, value, known)
    for option in options:
        name, equals, text = option[2:].partition("=")
        if not equals:
            exit_with_error(f"{option}: constants are set as --{name}=value")
        value = text if type(constants.get(name)) is str else literal(text)
        override(constants, option, name, value, set(constants))
    script.update(constants)
    return constants


def override(constants, where, name, value, known):
    """Set constants[name]; exits with one line that begins with `where` if that can't be done."""
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
    if kind in (int, float) and not value >= 0:
        exit_with_error(f"{where}: {name} can't be {value}")
    constants[name] = value


def print_help(script, constants):
    """The script's docstring, and its constants with their comments."""
    source = Path(script["__file__"]).read_text()
    lines = source.split("# " + "-" * 20)[0].splitlines()
    print(script["__doc__"], *(line for line in lines if line.startswith("# ")
                               or line.split(" = ")[0] in constants), sep="\n")


def constants_of(path):
    """Lower-case names assigned at the top level of a script. Nothing is executed."""
    return [node.targets[0].id for node in ast.parse(Path(path).read_text()).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id.islower()]


def preset_values(path):
    """[(name, value)] of a preset. Nothing is executed; only `name = value` lines are accepted."""
    try:
        body = ast.parse(Path(path).read_text()).body
        for node in body:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1
                    and isinstance(node.targets[0], ast.Name)):
                raise SyntaxError("", (path, node.lineno, 0, ""))
        return [(node.targets[0].id, ast.literal_eval(node.value)) for node in body]
    except SyntaxError as e:
        exit_with_error(f"{path}, line {e.lineno}: a preset has only lines of name = value")
    except ValueError:
        exit_with_error(f"{path}: a value is not a number, string or boolean")


def literal(text):
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
    """For code that reads or writes files: what is wrong is said in one line, with status 1."""
    try:
        yield
    except (OSError, ValueError) as e:
        sys.exit(f"error: {' '.join(str(e).split())}")


def progress(iterable, **kwargs):
    """tqdm on rank 0; a log file gets a line every 30 seconds instead of five a second."""
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(iterable, mininterval=interval, disable=rank > 0, **kwargs)
