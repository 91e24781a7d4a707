"""The folder side of `imagegpt sample`: processes and their GPUs."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from imagegpt.cli import _checks, _console, _loading, _progress

if TYPE_CHECKING:
    from imagegpt.jobs.ranks import Workers
    from imagegpt.pipeline.options import RuleOptions


def sample_into_folder(
    out: Path,
    num: int,
    loading: _loading.Loading,
    rule_options: "RuleOptions",
    seed: int,
    file_format: str,
    batch_size: int | None,
    force: bool,
) -> None:
    """Draw the images that are not in the folder yet; only process 0 speaks."""
    _checks.check_model(loading.model, loading.revision)
    _checks.check_parent(out)
    with _console.working("loading"):
        from imagegpt.jobs.image_formats import check_format, count_images
        from imagegpt.jobs.ranks import Workers
        from imagegpt.jobs.sample import sample_many
        from imagegpt.jobs.sample_folder import check_folder
        from imagegpt.sampling import SamplingRules

    workers = Workers.from_environment(os.environ)
    rules = SamplingRules(**rule_options)
    check_format(file_format)
    if workers.rank == 0:
        check_folder(out)
    _use_cores(workers)
    pipe = replace(loading, device=device_of(workers, loading.device)).pipeline(speaks=workers.rank == 0)

    def how_to_go_on() -> str | None:
        if workers.rank:
            return None
        done, total = count_images(out)
        return f"stopped: {done:,} of {total:,} images are in {out}, the same command goes on from there"

    with _progress.stopping(how_to_go_on), _progress.image_progress("sampling", shown=workers.rank == 0) as progress:
        sample_many(
            pipe,
            num,
            out,
            seed=seed,
            rules=rules,
            file_format=file_format,
            batch_size=batch_size,
            name=loading.model,
            force=force,
            workers=workers,
            progress=progress,
        )
    if workers.rank == 0:
        _console.echo(f"{num} {'image' if num == 1 else 'images'}: {out}")


def device_of(workers: "Workers", asked: str | None) -> str | None:
    """The device of this process: one of its own where several processes of a machine shall use its GPUs."""
    import torch

    if workers.local_world_size == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
        return asked
    return f"cuda:{workers.local_rank % torch.cuda.device_count()}"


def _use_cores(workers: "Workers") -> None:
    """Share the cores of a machine out among its processes, unless the launcher or the user has done so."""
    if workers.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers.local_world_size))
