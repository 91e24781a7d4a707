"""Capturing steps, with CUDA graphs replaced by a fake that runs the step again; see also tests/test_gpu.py."""

import contextlib

import pytest
import torch

from imagegpt.sampling import ExecutionPlan, Session
from imagegpt.sampling.backends.cuda_graphs import CudaGraphBackend
from imagegpt.sampling.decoders import SequentialDecoder
from naive import RULES, prompts_of, seeds_of, varied_model


class Graph:
    """Runs the captured step again, as CUDA does."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.run()

    def pool(self):
        return "the pool"


@pytest.fixture
def cuda(monkeypatch):
    """A fake GPU; returns the captured graphs and the devices they were captured on."""
    graphs, devices, current = [], [], []

    @contextlib.contextmanager
    def device(new_device):
        current.append(new_device)
        yield
        current.pop()

    @contextlib.contextmanager
    def graph(new_graph, pool=None):
        devices.append(current[-1] if current else None)
        graphs.append((new_graph, pool))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    original = CudaGraphBackend._capture

    def capture_step(self, capture, length):
        succeeded = original(self, capture, length)
        if succeeded:
            run = super(CudaGraphBackend, self)._logits
            capture.graph.run = lambda: capture.logits.copy_(run(capture.tokens, capture.positions, length))
        return succeeded

    monkeypatch.setattr(CudaGraphBackend, "_capture", capture_step)
    return graphs, devices


def sample(model, step, prompts):
    """Sample images with this backend."""
    session = Session(step, SequentialDecoder(), len(prompts), model.config.n_positions, "cpu")
    rows = [session.admit(*given) for given in zip(prompts, seeds_of(len(prompts)), RULES, strict=False)]
    while session.unfinished():
        session.step()
    return torch.stack([session.pixels(row) for row in rows])


def prepared(num_pixels):
    return ExecutionPlan.choose(varied_model(num_pixels=num_pixels), backend="torch").model


def test_captured_steps_sample_the_same_images_as_eager_ones(cuda):
    model, prompts = prepared(200), prompts_of([0, 150, 30])
    graphs, _ = cuda
    step = CudaGraphBackend(model, 3, 200, torch.float32)
    images = sample(model, step, prompts)
    plain = ExecutionPlan.choose(model, backend="torch").make_backend(3, 200)
    assert torch.equal(images, sample(model, plain, prompts))
    assert sum(graph.replays for graph, _ in graphs) > 150


def test_few_cache_lengths_are_captured_on_the_models_device_with_shared_memory(cuda):
    """Regression: there were up to 96 graphs, and a GPU other than the current one did not work."""
    model = prepared(1024)
    step = CudaGraphBackend(model, 2, 1024, torch.float32)
    step.admit(0, torch.empty(0, dtype=torch.int64))
    step.admit(1, torch.empty(0, dtype=torch.int64))
    tokens = torch.zeros(2, 1, dtype=torch.int64)
    for position in range(0, 1024, 8):
        step.step(tokens, torch.full((2, 1), position), [0, 1], position + 1)
    graphs, devices = cuda
    assert len(graphs) == 4
    assert devices == [torch.device("cpu")] * 4
    assert [pool for _, pool in graphs] == [None, "the pool", "the pool", "the pool"]


def test_a_failed_capture_warns_once_and_runs_eagerly(monkeypatch, cuda):
    def fail(*_, **__):
        raise RuntimeError("capture failed\nand more")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    model, prompts = prepared(40), prompts_of([3, 0])
    with pytest.warns(UserWarning, match=r"^sampling runs without CUDA graphs, .*: capture failed$") as said:
        images = sample(model, CudaGraphBackend(model, 2, 40, torch.float32), prompts)
    assert len(said) == 1
    plain = ExecutionPlan.choose(model, backend="torch").make_backend(2, 40)
    assert torch.equal(images, sample(model, plain, prompts))
