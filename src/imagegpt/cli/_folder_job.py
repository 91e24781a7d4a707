"""Sampling many images into a folder, as `sample` and `complete` do: processes, GPUs, progress and results."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from imagegpt.cli import _checks, _console, _loading, _progress

if TYPE_CHECKING:
    from imagegpt.jobs.ranks import Ranks
    from imagegpt.jobs.sample import SampleResult
    from imagegpt.pipeline.options import RuleOptions
    from imagegpt.pipeline.pipeline import ImageGPTPipeline

Result = TypeVar("Result", bound="SampleResult")

ImageFormat = Literal["png", "npz", "arrow", "parquet"]
ExecutorName = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class FolderJob:
    """The options of a job that samples images into a folder; fields have the names of the options."""

    out: Path
    model: _loading.ModelOptions
    rules: "RuleOptions"
    seed: int
    file_format: ImageFormat | None
    batch_size: int | None
    force: bool
    workers: int
    executor: ExecutorName
    as_json: bool

    @property
    def is_folder(self) -> bool:
        """Whether --out means a folder; other suffixes than .png are mistakes, unless the folder exists."""
        return self.out.is_dir() or not self.out.suffix

    def refuse(self, **options: Any) -> None:
        """Raise ValueError if an option was given that belongs to one picture."""
        for name, value in options.items():
            if value is not None:
                raise ValueError(
                    f"--{name} {value} belongs to a picture and --out {self.out} is a folder: give only one"
                )

    def refuse_picture(self) -> None:
        """Raise ValueError if an option was given, or processes were started, that belong to a folder."""
        if self.file_format is not None:
            raise ValueError(
                f"--format {self.file_format} is for many images in a folder: give --out a name without .png"
            )
        if self.workers > 1 or self.executor != "local" or os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(f"--out {self.out} is one picture, which several processes cannot share: give a folder")

    def run(self, activity: str, start: "Callable[..., Result]") -> "Result":
        """Do the job, and print its result.

        Args:
            activity: shown beside the progress bar.
            start: called with the pipeline and, by keyword, `folder` and `SamplingOptions`.
        Returns: what `start` returned.
        """
        _checks.check_model(self.model.model, self.model.revision)
        _checks.check_parent_folder(self.out)
        with _console.spinner("loading"):
            from imagegpt.jobs.executors import choose_executor
            from imagegpt.jobs.image_formats import check_format
            from imagegpt.jobs.image_job import check_folder
            from imagegpt.jobs.ranks import Ranks
            from imagegpt.sampling import SamplingRules

        ranks = Ranks.from_environment(os.environ)
        check_format(self.file_format or "png")
        check_folder(self.out)
        executor = choose_executor(self.executor, self.workers)
        _share_cores(ranks.local_world_size)
        model, seen = replace(self.model, device=device_of(ranks, self.model.device)), [0, 0]
        pipe = model.load_pipeline(verbose=ranks.reports)
        with (
            _progress.on_interrupt(lambda: self._how_to_resume(*seen) if ranks.reports else None),
            _progress.image_progress(activity, shown=ranks.reports) as progress,
        ):

            def on_progress(done: float, total: int) -> None:
                seen[:] = int(done), total
                progress(done, total)

            result = start(
                pipe, folder=self.out, seed=self.seed, rules=SamplingRules(**self.rules),
                file_format=self.file_format or "png", batch_size=self.batch_size, name=self.model.model,
                force=self.force, ranks=ranks, executor=executor, load=_Loader(model, self.workers),
                on_progress=on_progress if ranks.reports else None,
            )  # fmt: skip
        if ranks.reports and self.as_json:
            _console.print_json(result.to_dict())
        elif ranks.reports:
            _console.echo(f"{result.num_images} {'image' if result.num_images == 1 else 'images'}: {self.out}")
        return result

    def _how_to_resume(self, done: int, total: int) -> str:
        return f"stopped: {done:,} of {total:,} images are in {self.out}; the same command resumes from there"


@dataclass(frozen=True)
class _Loader:
    """Loads the model in a worker process, which gets its share of the cores."""

    model: _loading.ModelOptions
    num_workers: int

    def __call__(self) -> "ImageGPTPipeline":
        _share_cores(self.num_workers)
        return self.model.load_pipeline(verbose=False)


def device_of(ranks: "Ranks", given: str | None) -> str | None:
    """The device of this process: a GPU of its own if several processes of a machine use GPUs."""
    import torch

    if ranks.local_world_size == 1 or given not in (None, "cuda") or not torch.cuda.is_available():
        return given
    return f"cuda:{ranks.local_rank % torch.cuda.device_count()}"


def _share_cores(num_processes: int) -> None:
    """Use a fair number of cores of this machine, unless the launcher or the user has chosen it."""
    if num_processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
