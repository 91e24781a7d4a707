"""`imagegpt sample`: sample images from nothing, as one picture, or many of them into a folder.

If --out ends in .png, it is one picture. A folder, or a name without a suffix, is filled by a job of `imagegpt.jobs`,
which can be killed, resumed, and shared by many processes.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from imagegpt.cli import _console, _folder_job, _loading, _options, _output, _progress
from imagegpt.common import ranges

if TYPE_CHECKING:
    from imagegpt.jobs.sample import SampleResult
    from imagegpt.pipeline.pipeline import ImageGPTPipeline


def sample(
    num: Annotated[int, _options.number_option(ranges.NUM_IMAGES, "How many images.")] = 16,
    model: _options.ModelOption = "digits",
    seed: _options.SeedOption = 0,
    temperature: _options.TemperatureOption = 1.0,
    top_k: _options.TopKOption = None,
    top_p: _options.TopPOption = None,
    min_p: _options.MinPOption = None,
    out: Annotated[
        Path, _options.path_option("A .png for one picture of all samples, or a folder with one file per image.")
    ] = Path("samples.png"),
    file_format: _options.ImageFormatOption = None,
    singles: _options.SinglesOption = None,
    gif: _options.GifOption = None,
    force: _options.ForceOption = False,
    device: _options.DeviceOption = None,
    precision: _options.PrecisionOption = None,
    decoder: _options.DecoderOption = "sequential",
    batch_size: _options.BatchSizeOption = None,
    max_memory: _options.MaxMemoryOption = None,
    revision: _options.RevisionOption = None,
    workers: _options.WorkersOption = 1,
    executor: _options.ExecutorOption = "local",
    as_json: _options.JsonOption = False,
) -> None:
    """Sample images from nothing: one picture of all of them, or many into a folder.

    A folder can be resumed: give the same command again. Processes of torchrun, Slurm or a job array share the work.
    """
    options = _loading.ModelOptions(
        model=model, revision=revision, device=device, precision=precision, decoder=decoder, max_memory=max_memory
    )
    job = _folder_job.FolderJob(
        out=out, model=options, rules={"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p},
        seed=seed, file_format=file_format, batch_size=batch_size, force=force, workers=workers, executor=executor,
        as_json=as_json,
    )  # fmt: skip
    if job.is_folder:
        job.refuse(singles=singles, gif=gif)
        job.run("sampling", partial(_sample_many, num))
    else:
        _sample_picture(job, num, singles, gif)


def _sample_many(num: int, pipe: "ImageGPTPipeline", **options: Any) -> "SampleResult":
    from imagegpt.jobs.sample import sample_many

    return sample_many(pipe, num, **options)


def _sample_picture(job: _folder_job.FolderJob, num: int, singles: Path | None, gif: Path | None) -> None:
    """Sample images, and write them as one picture, singly and as an animation."""
    if job.out.suffix.lower() != ".png":
        raise ValueError(
            f"--out is {job.out}: images are written as PNG, choose a name that ends in .png, or one without a suffix "
            "for a folder of many"
        )
    job.refuse_picture()
    _output.check_png(job.out, job.force)
    _output.check_image_count(num, "samples")
    _output.check_gif(gif, job.force)
    paths = _output.check_singles(singles, [f"sample_{index}.png" for index in range(num)], job.force)
    pipe = job.model.load_pipeline()
    from imagegpt.figures.animations import check_gif_size, reveal_frames
    from imagegpt.figures.grids import sample_grid, sample_grid_size
    from imagegpt.sampling import SamplingRules

    size = pipe.processor.size["width"], pipe.processor.size["height"]
    if gif is not None:
        check_gif_size(sample_grid_size(num, size), size)
    with _progress.pixel_progress("sampling") as progress:
        images = pipe.sample(num, seed=job.seed, batch_size=job.batch_size, progress=progress, **job.rules)
    facts = {"model": job.model.model, "seed": job.seed, "rules": SamplingRules(**job.rules)}
    animations = {} if gif is None else {gif: reveal_frames(lambda shown: sample_grid(images, num_shown=shown), size)}
    _output.write_pngs({**dict(zip(paths, images, strict=False)), job.out: sample_grid(images)}, facts, animations)
    if job.as_json:
        _console.print_json({"num_images": num, "path": str(job.out), "singles": [str(path) for path in paths]})
        return
    _console.echo(f"{num} {'sample' if num == 1 else 'samples'}: {job.out}")
    _output.echo_extras(gif, singles)
