"""Recording of steps, with torch's graphs replaced by functions that are called again; see also tests/test_gpu.py."""

import contextlib

import pytest
import torch

from imagegpt.sampling import ExecutionPlan, Session
from imagegpt.sampling.backends.cuda_graphs import CudaStep
from naive import RULES, prompts_of, seeds_of, varied_model


class Graph:
    """Remembers what was recorded, as CUDA does: the functions, not the results."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.again()

    def pool(self):
        return "the pool"


@pytest.fixture
def cuda(monkeypatch):
    """A GPU that records by computing again; gives the graphs and the devices that were current."""
    graphs, devices, current = [], [], []

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    @contextlib.contextmanager
    def graph(made, pool=None):
        devices.append(current[-1] if current else None)
        graphs.append((made, pool))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    record = CudaStep._record

    def record_and_remember(self, recorded, num_seen):
        done = record(self, recorded, num_seen)
        if done:
            again = super(CudaStep, self)._logits
            recorded.graph.again = lambda: recorded.logits.copy_(again(recorded.tokens, recorded.positions, num_seen))
        return done

    monkeypatch.setattr(CudaStep, "_record", record_and_remember)
    return graphs, devices


def drawn(model, step, prompts):
    """Images of a session with this backend."""
    session = Session(step, len(prompts), model.config.n_positions, "cpu")
    rows = [session.admit(*given) for given in zip(prompts, seeds_of(len(prompts)), RULES, strict=False)]
    while session.unfinished():
        session.step()
    return torch.stack([session.pixels(row) for row in rows])


def prepared(num_pixels):
    return ExecutionPlan.choose(varied_model(num_pixels=num_pixels), backend="torch").model


def test_recorded_steps_give_the_images_of_steps_that_are_not(cuda):
    model, prompts = prepared(200), prompts_of([0, 150, 30])
    graphs, _ = cuda
    step = CudaStep(model, 3, 200, torch.float32)
    images = drawn(model, step, prompts)
    plain = ExecutionPlan.choose(model, backend="torch").open_backend(3, 200)
    assert torch.equal(images, drawn(model, plain, prompts))
    assert sum(graph.replays for graph, _ in graphs) > 150


def test_few_lengths_are_recorded_on_the_device_of_the_model_and_share_their_memory(cuda):
    """There were up to 96, and on any GPU but the current one pixels would never have been drawn."""
    model = prepared(1024)
    step = CudaStep(model, 2, 1024, torch.float32)
    step.admit(0, torch.empty(0, dtype=torch.int64))
    step.admit(1, torch.empty(0, dtype=torch.int64))
    tokens = torch.zeros(2, 1, dtype=torch.int64)
    for position in range(0, 1024, 8):
        step.step(tokens, torch.full((2, 1), position), [0, 1], position + 1)
    graphs, devices = cuda
    assert len(graphs) == 4
    assert devices == [torch.device("cpu")] * 4
    assert [pool for _, pool in graphs] == [None, "the pool", "the pool", "the pool"]


def test_where_recording_fails_it_is_said_once_and_images_are_right(monkeypatch, cuda):
    def fail(*_, **__):
        raise RuntimeError("capture failed\nand more")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    model, prompts = prepared(40), prompts_of([3, 0])
    with pytest.warns(UserWarning, match=r"^sampling goes on without CUDA graphs and slower: capture failed$") as said:
        images = drawn(model, CudaStep(model, 2, 40, torch.float32), prompts)
    assert len(said) == 1
    plain = ExecutionPlan.choose(model, backend="torch").open_backend(2, 40)
    assert torch.equal(images, drawn(model, plain, prompts))
