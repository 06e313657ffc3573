"""A run's metrics and sample responses for Weights & Biases and for TensorBoard."""
import os
from importlib.util import find_spec
from uuid import uuid4

from lib.cli import check
from lib.distributed import rank
from lib.files import read_jsonl

NUM_SAMPLES = 16  # responses of each evaluation that are shown


def check_installed(constants):
    """Raises ValueError, naming the package, if one that is switched on is not installed."""
    for name in ("wandb", "tensorboard"):
        check(not constants[name] or find_spec(name),
              f"--{name}={constants[name]}: pip install {name}")


class WandB:
    """One W&B run per folder, below <folder>/wandb; a run that continues keeps its id."""

    def __init__(self, folder, constants, step):
        import wandb
        path = os.path.join(folder, "wandb", "id")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if step == 0 or not os.path.exists(path):
            with open(path, "w") as f:
                f.write(uuid4().hex[:8])
        with open(path) as f:
            self.run = wandb.init(project=constants["wandb"], name=os.path.basename(folder),
                                  id=f.read(), resume="allow", dir=folder, config=constants)
        self.table = wandb.Table

    def log(self, step, values, samples):
        if samples:
            columns = list(samples[0])
            values = values | {"samples": self.table(columns=columns, data=[
                [sample[key] for key in columns] for sample in samples])}
        self.run.log(values, step=step)

    def close(self):
        self.run.finish()


class TensorBoard:
    """Event files in <folder>/tensorboard."""

    def __init__(self, folder, constants, step):
        from torch.utils.tensorboard import SummaryWriter
        # Readers leave out what was written for this step and later ones before.
        self.writer = SummaryWriter(os.path.join(folder, "tensorboard"), purge_step=step)

    def log(self, step, values, samples):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if samples:
            self.writer.add_text("samples", "\n\n".join(
                f"**{s['id']}**, answer {s['answer']}, reward {s['reward']:g}\n\n"
                + "\n".join(f"    {line}" for line in s["greedy response"].splitlines())
                for s in samples), step)
        self.writer.flush()

    def close(self):
        self.writer.close()


class Watch:
    """Those that are switched on. An error switches one off, with a warning: the run goes on."""

    def __init__(self, folder, constants, step):
        """step: the first that will be logged."""
        self.loggers = []
        for name, kind in (("wandb", WandB), ("tensorboard", TensorBoard)):
            if rank == 0 and constants[name]:
                try:
                    self.loggers.append(kind(folder, constants, step))
                except Exception as e:
                    warn(kind, e)

    def log(self, metrics, responses=None):
        """metrics: a line of metrics.jsonl; responses: the path of an evaluation's responses."""
        values = {f"{group_of(name)}/{name}": value for name, value in metrics.items()
                  if name != "step"}
        samples = []
        if responses and self.loggers:
            samples = [{"id": r["id"], "prompt": r["prompt"], "answer": r["answer"],
                        "greedy response": r["greedy"][0]["text"],
                        "reward": r["greedy"][0]["reward"]}
                       for r in read_jsonl(responses, ("id",))[:NUM_SAMPLES]]
        self.call("log", metrics["step"], values, samples)

    def close(self):
        self.call("close")

    def call(self, method, *arguments):
        for logger in list(self.loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as e:
                warn(type(logger), e)
                self.loggers.remove(logger)


def warn(kind, error):
    print(f"warning: {kind.__name__} is switched off ({type(error).__name__}: "
          f"{' '.join(str(error).split())[:200]}); metrics.jsonl has everything", flush=True)


def group_of(name):
    """The panel that shows a metric."""
    if name.startswith("seconds") or name in ("tokens", "memory_gb"):
        return "speed"
    return "eval" if name.startswith("accuracy") else "train"
