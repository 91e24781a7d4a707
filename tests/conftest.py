"""What every test shares: quiet libraries, one warning state per test, and two filters for code that is not ours."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network is wrong
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as for the command line: tests share the cores with each other

import pytest
import torch
from transformers.utils import logging as transformers_logging

from forkserver import Forkserver
from imagegpt.kernels import attention

pytest_plugins = ("image_fixtures",)

torch.set_num_threads(1)  # the models here are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def _fresh_warnings():
    """`warning_once` remembers what it said while the process lives; a test must not depend on another's silence."""
    logging.Logger.warning_once.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def _whole_roots():
    """Mend the reference of transformers 5.17, which rounds the root of the head width down; other differences count.

    (Its `torch_float` gives whole numbers. OpenAI's models have a root that is whole, our tiny ones have not.)
    """
    from transformers.models.imagegpt import modeling_imagegpt as reference

    with pytest.MonkeyPatch.context() as patch:
        if reference.torch_float(2.5) != 2.5:
            patch.setattr(reference, "torch_float", float)
        yield


@pytest.fixture(autouse=True, scope="session")
def _cache_home(request, tmp_path_factory):
    """Nothing is read from or left in the user's cache; each kernel is compiled once for all workers of a session."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # which the workers share
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "caches"))
        yield


@pytest.fixture(scope="session")
def forkserver(_cache_home):
    """Runs Python code in new processes that need not import torch and transformers, see `forkserver`."""
    server = Forkserver()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _seeded():
    """Tests that draw without a generator of their own draw the same numbers alone and in company."""
    torch.manual_seed(0)


@pytest.fixture
def transformers_log():
    """The messages transformers' loggers (and ours, which are theirs) emit during the test."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler, verbosity = Keep(), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()  # commands that ran in this process silence it
    loggers = [transformers_logging.get_logger(name) for name in ("transformers", "imagegpt")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)
    transformers_logging.set_verbosity(verbosity)


# Warnings of other people's code that no caller can avoid; everything else is an error.
UNAVOIDABLE_WARNINGS = [
    # transformers 5.23 builds flex_attention's block mask with a flag that torch 2.13 deprecates.
    "ignore:_compile flag on create_block_mask:DeprecationWarning",
    # torch.compile and torch.export of torch 2.13 still import torch.jit.
    "ignore:.torch.jit.script:DeprecationWarning",
    "ignore:.*should not be instantiated. Methods on autograd functions:DeprecationWarning",
]


def pytest_configure(config):
    for line in UNAVOIDABLE_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def with_training_kernels(_cache_home):
    """The kernels for training can be called."""
    attention.load()
