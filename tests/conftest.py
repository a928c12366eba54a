"""Fixtures and helpers: a small trained model, copies of the project, and the options of pytest."""

import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# one thread per process, since the tests run in several processes
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from minigpt.cli.mlflow_store import move_artifacts
from minigpt.common.config import DataConfig, ModelConfig, RuntimeConfig, TrainConfig, load_params
from minigpt.corpus.corpus import Corpus
from minigpt.data.batches import Batch, Batches
from minigpt.generation.backend import Backend
from minigpt.generation.engine import run
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Sequence
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.loss import sum_loss
from minigpt.model.model import MiniGPT
from minigpt.serving.build_page import install_packages
from minigpt.tokenizer import CharTokenizer, Tokenizer
from minigpt.training.train import Trainer

ROOT = Path(__file__).parent.parent
LEFT_OUT = pytest.StashKey[dict[str, int]]()
SENTENCES = ROOT / "data/raw/sentences.txt"
PARAMS = load_params(ROOT / "params.yaml")

# background processes of a shell ignore SIGINT, and their children inherit this
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow")
    parser.addoption("--full", action="store_true", help="run every test, each at its full count")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Divide the cases of a campaign among tests; see tests/campaigns/campaign.py."""
    if "numbers" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        count = metafunc.module.FULL if full else metafunc.module.REDUCED
        size = -(-count // 100) if full else count  # few cases do not repay a second preparation
        parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        metafunc.parametrize("numbers", parts, ids=[f"{part[0]}-{part[-1]}" for part in parts])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests whose marker asks for an option that was not given."""
    full = config.getoption("--full")
    missing = {"slow": not (full or config.getoption("--all")), "full": not full}
    excluded = {name: [] for name in missing}
    for item in items:
        if "with_experiments" in getattr(
            item, "fixturenames", ()
        ):  # this fixture trains three models
            item.add_marker(pytest.mark.slow)
        for name in missing:
            if missing[name] and item.get_closest_marker(name):
                excluded[name].append(item)
                break
    left_out = set().union(*excluded.values())
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
    config.stash[LEFT_OUT] = {name: len(tests) for name, tests in excluded.items()}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of a worker process to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print in one line which tests were left out, and why."""
    counts = config.stash.get(LEFT_OUT, {})
    reasons = {
        "slow": "slow (run by make test-all)",
        "full": "taking minutes each (run by make test-full)",
    }
    parts = [f"{counts[name]} {text}" for name, text in reasons.items() if counts.get(name)]
    if parts:
        terminalreporter.write_line(f"tests not run: {', '.join(parts)}")


@pytest.fixture(scope="session")
def full(request) -> bool:
    return request.config.getoption("--full")


NEEDS_NPM = pytest.mark.skipif(
    shutil.which("npm") is None and "CI" not in os.environ,
    reason="needs Node.js: apt install nodejs npm",
)


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory) -> Path:
    """Return the folder `node_modules` with the packages of the page."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "npm.lock"):
        return install_packages()


# switches beyond the classic architecture; tested one at a time and as they are used together
SWITCHES = [
    {"positional": "rotary"},
    {"qk_norm": True},
    {"bigram_buckets": 97},
    {"trigram_buckets": 97},
    {"positional": "learned"},
    {"activation": "gelu"},
    {"tied_head": True},
    {"head_bias": False},
    {"tied_head": True, "single_special_token": True},
]
FAST = {"positional": "rotary", "qk_norm": True, "bigram_buckets": 97, "trigram_buckets": 97}
GPT2 = {"positional": "learned", "activation": "gelu", "tied_head": True, "head_bias": False}
CONVERTED_GPT2 = {**GPT2, "single_special_token": True}
ARCHITECTURES = [{}, *SWITCHES, FAST, GPT2, CONVERTED_GPT2]


def randomize(model: MiniGPT) -> MiniGPT:
    """Add noise to every weight, since biases of 0 and norm weights of 1 would hide errors."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def engine_ids(
    backend: Backend, prompt: str, max_new_tokens: int, sampling: Sampling, sample: int = 0
) -> list[int]:
    """Return the tokens that the engine generates."""
    sequence = Sequence(backend.tokenizer, prompt, sampling, sample, max_new_tokens)
    for _ in run(backend, [sequence]):
        pass
    return sequence.generated


def model_config(**changes: Any) -> ModelConfig:
    """Return the section `model` of params.yaml with `changes`."""
    return ModelConfig(**{**PARAMS.model.model_dump(), **changes})


def build_model(vocab_size: int = 40, **changes: Any) -> MiniGPT:
    return MiniGPT(vocab_size, model_config(**changes))


def model_metadata(model: MiniGPT, tokenizer: Tokenizer, **others: Any) -> dict[str, Any]:
    """Return the metadata of a model file that a backend needs, and `others`."""
    config = {"vocab_size": tokenizer.vocab_size, **model.config.model_dump()}
    return {"config": config, "tokenizer": tokenizer.to_dict(), **others}


def train_config(**changes: Any) -> TrainConfig:
    """Return the section `train` of params.yaml for a short training, with `changes`."""
    short = {"max_steps": 12, "warmup_fraction": 0.2, "eval_interval": 4, "log_interval": 3}
    return TrainConfig(**{**PARAMS.train.model_dump(), **short, **changes})


def data_config(path: Path, **changes: Any) -> DataConfig:
    """Return the section `data` of params.yaml for the text at `path`, with `changes`."""
    return DataConfig(**{**PARAMS.data.model_dump(), "path": str(path), **changes})


def mean_loss(model: torch.nn.Module, batches: Iterable[Batch]) -> float:
    """Return the mean cross-entropy in nats per token over all `batches`."""
    total, count = sum_loss(model, batches)
    return total / count


def runtime_config(**changes: Any) -> RuntimeConfig:
    return RuntimeConfig(**{**PARAMS.runtime.model_dump(), "checkpoint_interval": 5, **changes})


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return [document.text for document in Corpus(data_config(SENTENCES))]


@pytest.fixture(scope="session")
def tokenizer(sentences) -> CharTokenizer:
    tokenizer = CharTokenizer()
    tokenizer.build_vocab(sentences)
    return tokenizer


@pytest.fixture(scope="session")
def trained(sentences, tokenizer) -> TorchBackend:
    """Train a small model that memorizes the sentences; its context length is 64."""
    ids = torch.tensor([token for text in sentences for token in tokenizer.encode(text)]).numpy()
    torch.manual_seed(0)
    sizes = {"d_model": 64, "num_heads": 4, "num_layers": 2, "d_ff": 256, "max_seq_len": 64}
    model = build_model(tokenizer.vocab_size, **sizes)
    config = train_config(layout="padded", batch_size=16, max_steps=300, eval_interval=100)
    Trainer(model, Batches(ids, "padded", 16, 64), Batches(ids, "padded", 16, 64), config).run()
    return TorchBackend(model, tokenizer)


TINY = {
    "d_model: 128": "d_model: 32",
    "num_heads: 4": "num_heads: 2",
    "num_layers: 4": "num_layers: 2",
    "d_ff: 512": "d_ff: 64",
    "max_seq_len: 256": "max_seq_len: 32",
    "max_steps: 2000": "max_steps: 30",
    "warmup_fraction: 0.1": "warmup_fraction: 0.2",
    "eval_interval: 400": "eval_interval: 15",
    "log_interval: 20": "log_interval: 5",
    "checkpoint_interval: 200": "checkpoint_interval: 5",
    "max_new_tokens: 300": "max_new_tokens: 30",
    "threads: 2": "threads: 1",
}


class Project:
    """A Git repository with a copy of this project and small parameters."""

    def __init__(self, root: Path):
        self.root = root
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        for old, new in TINY.items():
            self.edit("params.yaml", old, new)
        (root / "dvc.lock").unlink(missing_ok=True)
        # independent of the caller's tracking server, DVC experiment and make
        foreign = ("MLFLOW_", "DVC_", "MAKE", "MFLAGS")
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(foreign)
        }
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env |= {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.com"}
        self.env |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.com"}
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.commit()

    def copy(self, root: Path, tracked: bool = False) -> "Project":
        """Return a copy at `root`; unless `tracked`, it has neither records of runs nor a store."""
        copy = Project.__new__(Project)
        copy.root, copy.env = root, self.env
        if tracked:
            shutil.copytree(self.root, root, symlinks=True)
            return copy
        shutil.copytree(
            self.root, root, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "mlflow.db")
        )
        shutil.rmtree(root / ".minigpt/runs", ignore_errors=True)
        return copy

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.root / name
        text = file.read_text()
        assert text.count(old) == 1, f"{name}: {old!r} occurs {text.count(old)} times"
        file.write_text(text.replace(old, new))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def start(self, *command: str, output: Any = subprocess.PIPE, **env: str) -> subprocess.Popen:
        environment = {**self.env, **env}
        # a new session, so that a server can be stopped together with its workers
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        """Run a command that must exit with `code`, and return its stdout and stderr."""
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, (
            f"{' '.join(command)}: exit {process.returncode}\n{out}\n{err}"
        )
        return out + err


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until `condition` returns a true value, and return this value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true after {seconds} seconds"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def server(project: Project, *command: str, **env: str) -> Iterator[subprocess.Popen]:
    """Run a server during the block, then stop it together with its workers."""
    process = project.start(*command, output=subprocess.DEVNULL, **env)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_up(url: str) -> bool:
    """Return whether a request to `url` succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def checkpoints(project: Project) -> list[Path]:
    return list(project.root.glob(".minigpt/checkpoints/*/step-*.safetensors"))


def store(project: Project) -> tuple[Any, Any]:
    """Return a client of the project's tracking store, and its experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("minigpt")
    assert experiment is not None
    return client, experiment


def runs(project: Project) -> list[Any]:
    """Return the project's tracked runs, the oldest first."""
    client, experiment = store(project)
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def reproduce(root: Path) -> Project:
    """Make a project at `root`, run `dvc repro` and commit the results."""
    project = Project(root)
    project.run("dvc", "repro")
    project.commit()
    return project


def built_once(
    factory: pytest.TempPathFactory, name: str, build: Callable[[Path], Project]
) -> Project:
    """Return a copy of a project that the first of the test processes to need it builds."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"shared_{name}"
    built = folder / "built"
    with FileLock(f"{folder}.lock"):
        if not built.exists():
            folder.mkdir()
            built.write_bytes(pickle.dumps(build(folder / "project")))
    project: Project = pickle.loads(built.read_bytes())
    copy = project.copy(factory.mktemp(name) / "project", tracked=True)
    # otherwise the copy would write into the shared project
    move_artifacts(f"sqlite:///{copy.root}/mlruns/mlflow.db", copy.root)
    return copy


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> Project:
    """Return a project with committed results of `dvc repro`; tests must not change it."""
    return built_once(tmp_path_factory, "reproduced", reproduce)


@pytest.fixture(scope="session")
def campaign_folder(tmp_path_factory) -> Path:
    """Return the folder that the cases of all campaigns share."""
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="session")
def with_experiments(reproduced, tmp_path_factory) -> Project:
    """Return a project with three runs, two of them DVC experiments: "faster" and "apart"."""

    def build(root: Path) -> Project:
        project = reproduced.copy(root)
        project.run(sys.executable, "-m", "pipeline.tools.sync")
        project.run("dvc", "exp", "run", "--name", "faster", "-S", "train.learning_rate=1e-2")
        project.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "train.seed=1")
        return project

    return built_once(tmp_path_factory, "with_experiments", build)


@pytest.fixture
def project(reproduced, tmp_path) -> Project:
    """Return a copy of `reproduced` that tests may change; its tracking store is empty."""
    return reproduced.copy(tmp_path / "project")
