"""Compiling a block once for all blocks, all images and the next time the program runs.

A block is exported and compiled ahead of time into a shared library (AOTInductor), which is kept on disk: a call then
costs 3 microseconds where one through `torch.compile` costs 14 and more, and a second run loads it in milliseconds.
On a GPU it is `torch.compile` all the same: calls are recorded there, so that what they cost does not matter, and
loading AOTInductor's libraries for CUDA one after the other was seen to end the process (torch 2.11).

What a graph depends on is in its key: the shapes of weights and cache, the number of images where it is small, whether
one or several positions are fed, the source of the code it was made from, the processor and the version of torch. The
length of the cache and larger batches are arguments.
"""

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagegpt.kernels.building import default_folder, load
from imagegpt.kernels.machine import machine
from imagegpt.sampling.projections import FEW

Runner = Callable[[list[Tensor]], Tensor]

logger = logging.getLogger(__name__)

_SOURCES = (
    "model/layers.py",
    "model/lean.py",
    "kernels/decoding.py",
    *(f"sampling/{name}.py" for name in ("cache", "compilation", "decoder", "projections")),
)
_INDUCTOR_OPTIONS = {
    "cpp.dynamic_threads": True,  # as many threads as torch has when it runs, not as it had when it was compiled
}


class Compiler:
    """Compiles functions of tensors, each kind once.

    Args:
        folder: where compiled graphs are kept; None is `default_folder()`.
        only_known: take graphs that are in memory or on disk, compile none.
    """

    def __init__(self, folder: Path | None = None, *, only_known: bool = False) -> None:
        self.folder = default_folder() if folder is None else folder
        self.only_known = only_known
        self.num_compilations = 0  # in this process, for this object; graphs found on disk do not count
        self._runners: dict[str, Runner | None] = {}

    def runner(
        self, step: nn.Module, kind: str, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]
    ) -> Runner | None:
        """A compiled form of a module that has no state of its own.

        Args:
            step: called with tensors, returns one.
            kind: says what `step` computes, as far as the shapes of the arguments do not.
            arguments: an example of the tensors it will be called with.
            dynamic: for each of the first arguments, the axes whose size may change, and a name for it; same name,
                same size. All other sizes stay as they are in the example.
        Returns: the compiled function, or None where it is not known (with `only_known`) or cannot be compiled; it is
            then said why, once.
        """
        key = _key(kind, arguments, dynamic)
        if self._runners.get(key) is None:  # one that was not there may have been made since, by another compiler
            find = self._find_or_compile if _is_ahead_of_time(arguments[0].device) else self._compile_just_in_time
            self._runners[key] = find(key, step, arguments, dynamic)
        return self._runners[key]

    def has_kernels(self, device: torch.device) -> bool:
        """Whether our own kernels can be used on a device; compiles them if need be, or says why not, once."""
        if device.type != "cpu":
            return False
        try:
            return load("decoding", self.folder, build=not self.only_known)
        except Exception as error:  # noqa: BLE001 - as below
            self._give_up(error)
            return False

    def _find_or_compile(
        self, key: str, step: nn.Module, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]
    ) -> Runner | None:
        path = self.folder / f"{key}.pt2"
        runner = _load(path) if os.path.isfile(path) else None  # noqa: PTH113 - it is silent where we may not look
        if runner is not None or self.only_known:
            return runner
        try:
            logger.info("compiling for this machine, once; this takes about 20 seconds")
            self.folder.mkdir(parents=True, exist_ok=True)
            _compile_ahead(path, step, arguments, dynamic)
            self.num_compilations += 1
            runner = _load(path)
            if runner is None:
                raise RuntimeError(f"{path} was compiled, but cannot be loaded")
        except Exception as error:  # noqa: BLE001 - no compiler, no disk, a bug in it: all the same here
            self._give_up(error)
            return None
        return runner

    def _compile_just_in_time(
        self, key: str, step: nn.Module, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]
    ) -> Runner | None:
        """As `_find_or_compile`, with the compiler of `torch.compile`, which keeps files of its own on disk."""
        if self.only_known:
            return None
        try:
            logger.info("compiling for this machine, once; this takes about 20 seconds")
            runner = _compile_now(step, arguments, dynamic)
            runner([tensor.clone() for tensor in arguments])
            self.num_compilations += 1
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(error)
            return None
        return runner

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"sampling goes on uncompiled and slower: {_reason(error)}", stacklevel=2)
        self.only_known = True  # the next graph would fail as this one did


def varying(num_images: int, num_positions: int, is_shared: bool) -> tuple[dict[int, str], ...]:
    """Which axes vary, of the first arguments of `decoder.BlockStep`.

    Args:
        num_images: few of them, and those that share prompts, get a graph of their own.
        num_positions: fed at once; one gets a graph of its own.
        is_shared: whether keys and values of prompts are among the arguments.
    """
    images = {0: "images"} if num_images > FEW and not is_shared else {}
    positions = {1: "positions"} if num_positions > 1 else {}
    cache = {**images, 2: "room"}
    shared = [{2: "shared"}] * 2 if is_shared else []
    return {**images, **positions}, cache, cache, {**images, **positions}, {0: "seen"}, *shared


def _is_ahead_of_time(device: torch.device) -> bool:
    """Whether graphs for a device are compiled ahead of time, or when they are first run."""
    return device.type == "cpu"


def _compile_ahead(path: Path, step: nn.Module, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]) -> None:
    """Compile into a package at `path`, which is there whole or not at all."""
    import torch._inductor

    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.pt2")
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                _exported(step, arguments, dynamic), package_path=str(temporary), inductor_configs=_INDUCTOR_OPTIONS
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _compile_now(step: nn.Module, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]) -> Runner:
    """Compile for this process. The function checks nothing when it is called, so that nothing is compiled anew."""
    from torch._inductor.compile_fx import compile_fx
    from torch.fx.graph import CodeGen

    with _quiet():
        exported = _exported(step, arguments, dynamic).module(check_guards=False)
        graph = torch.fx.GraphModule(exported, exported.graph)  # without what the exported module adds to one
        graph.graph.set_codegen(CodeGen())
        graph.recompile()
        run: Any = compile_fx(graph, [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"])
    return lambda tensors: run(*tensors)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without gradients, and without torch's warnings about itself."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def _exported(
    step: nn.Module, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]
) -> torch.export.ExportedProgram:
    """A module's graph, in which the sizes that are `dynamic` are symbols."""
    shapes: list[Any] = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None for axes in dynamic]
    shapes += [None] * (len(arguments) - len(shapes))
    num_parameters = len(inspect.signature(step.forward).parameters)
    if num_parameters < len(arguments):  # the last one is *tensors
        shapes = [*shapes[: num_parameters - 1], tuple(shapes[num_parameters - 1 :])]
    return torch.export.export(step, tuple(arguments), dynamic_shapes=tuple(shapes), strict=False)


def _load(path: Path) -> Runner | None:
    """The function in a package; None if the file is not one."""
    import torch._inductor

    try:
        run = torch._inductor.aoti_load_package(str(path)).loader.run
    except (RuntimeError, OSError):
        logger.info("%s is damaged and is made anew", path)
        with contextlib.suppress(OSError):  # in a folder that we may only read, it stays
            path.unlink(missing_ok=True)
        return None
    return lambda tensors: run(tensors)[0]


def _key(kind: str, arguments: Sequence[Tensor], dynamic: Sequence[dict[int, str]]) -> str:
    gpu = torch.cuda.get_device_name(arguments[0].device) if arguments[0].is_cuda else ""
    signature = [kind, machine(), gpu, _sources()]
    for index, tensor in enumerate(arguments):
        varies = dynamic[index] if index < len(dynamic) else {}
        sizes = [varies.get(axis, size) for axis, size in enumerate(tensor.shape)]
        strides = () if varies else tensor.stride()  # those that vary are contiguous
        signature.append(f"{sizes} {strides} {tensor.dtype} {tensor.layout} {tensor.device}")
    return hashlib.sha256(json.dumps(signature, default=str).encode()).hexdigest()[:24]


@functools.cache
def _sources() -> str:
    package = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((package / source).read_bytes() for source in _SOURCES)).hexdigest()


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
