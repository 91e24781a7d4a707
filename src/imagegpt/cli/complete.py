"""`imagegpt complete`: keep the upper part of images and sample the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagegpt.cli import _broken_images, _checks, _console, _folder_job, _loading, _options, _output, _progress
from imagegpt.common import ranges

if TYPE_CHECKING:
    from PIL import Image

    from imagegpt.data.broken_images import BrokenImage
    from imagegpt.jobs.complete import CompleteResult
    from imagegpt.pipeline.pipeline import ImageGPTPipeline


def complete(
    images: _options.ImagesArgument,
    model: _options.ModelOption = "digits",
    keep: _options.KeepOption = None,
    rows: _options.RowsOption = None,
    mask: _options.KeptMaskOption = None,
    num: Annotated[int, _options.number_option(ranges.NUM_IMAGES, "Completions of each image.")] = 8,
    seed: _options.SeedOption = 0,
    temperature: _options.TemperatureOption = 1.0,
    top_k: _options.TopKOption = None,
    top_p: _options.TopPOption = None,
    min_p: _options.MinPOption = None,
    out: Annotated[Path, _options.path_option("A .png for one picture of all completions, or a folder.")] = Path(
        "completions.png"
    ),
    file_format: _options.ImageFormatOption = None,
    singles: _options.SinglesOption = None,
    gif: _options.GifOption = None,
    force: _options.ForceOption = False,
    max_broken: _options.MaxBrokenOption = 0.05,
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
    """Keep the upper part of images (--keep, --rows or --mask) and let the model sample the rest, several times.

    Images are cropped to a square and reduced to the model's size and colours first. Into a folder, IMAGE may also be
    a folder or data set, and the same command resumes. Broken images are left out and listed; the exit code is then 1.
    """
    options = _loading.ModelOptions(
        model=model, revision=revision, device=device, precision=precision, decoder=decoder, max_memory=max_memory
    )
    job = _folder_job.FolderJob(
        out=out, model=options, rules={"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p},
        seed=seed, file_format=file_format, batch_size=batch_size, force=force, workers=workers, executor=executor,
        as_json=as_json,
    )  # fmt: skip
    images_to_complete = _Completion(images=images, keep=keep, rows=rows, mask=mask, num=num, max_broken=max_broken)
    images_to_complete.run(job, singles, gif)


@dataclass(frozen=True, kw_only=True)
class _Completion:
    """The images to complete; fields have the names of the options."""

    images: list[Path]
    keep: float | None
    rows: int | None
    mask: Path | None
    num: int
    max_broken: float

    def run(self, job: _folder_job.FolderJob, singles: Path | None, gif: Path | None) -> None:
        """Complete the images into a folder, or as one picture."""
        choices = {"--keep": self.keep, "--rows": self.rows, "--mask": self.mask}
        given = [f"{name} {value}" for name, value in choices.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each choose what is kept: give one of them")
        if job.is_folder:
            job.refuse(singles=singles, gif=gif)
            self._check_images(self.images if len(self.images) > 1 else [])
            result = job.run("completing", self._complete_many)
            broken = result.broken
        else:
            broken = self._complete_picture(job, singles, gif)
        if broken:
            _broken_images.write_broken_list(broken, (job.out if job.out.name else job.out.absolute()).parent)
            raise typer.Exit(_broken_images.EXIT_STATUS)

    def _check_images(self, images: list[Path]) -> None:
        _checks.check_images([*images, self.mask] if self.mask is not None else images)

    def _num_kept(self, pipe: "ImageGPTPipeline") -> int:
        return pipe.prompt_length(self.keep, rows=self.rows, mask=self.mask)

    def _complete_many(self, pipe: "ImageGPTPipeline", **options: Any) -> "CompleteResult":
        from imagegpt.data.sources.registry import open_images
        from imagegpt.jobs.complete import FileList, complete_many

        is_list = len(self.images) > 1 or self.images[0].is_file()
        source = FileList(self.images) if is_list else open_images(str(self.images[0]))
        kept = self._num_kept(pipe)
        return complete_many(pipe, source, num_kept=kept, num=self.num, max_broken=self.max_broken, **options)

    def _complete_picture(
        self, job: _folder_job.FolderJob, singles: Path | None, gif: Path | None
    ) -> "list[BrokenImage]":
        """Complete the images as one picture; return the broken ones."""
        _output.check_png(job.out, job.force)
        job.refuse_picture()
        _output.check_image_count(self.num * len(self.images), "completions")
        _output.check_gif(gif, job.force)
        paths = _output.check_singles(singles, single_names(self.images, self.num), job.force)
        if job.out.absolute() in {path.absolute() for path in paths}:
            raise ValueError(f"--out is {job.out}, which is also the name of a single completion: choose another name")
        self._check_images(self.images)
        pipe = job.model.load_pipeline()
        num_kept = self._num_kept(pipe)
        encoded, broken = _broken_images.read_images(self.images, pipe.encode, self.max_broken)
        paths = [paths[index * self.num + copy] for index in encoded for copy in range(self.num)] if paths else []
        self._write_picture(job, pipe, encoded, num_kept, paths, gif)
        if job.as_json:
            found = {"num_images": len(encoded), "num_completions": self.num, "num_broken": len(broken)}
            _console.print_json({**found, "path": str(job.out), "singles": [str(path) for path in paths]})
            return broken
        _console.echo(
            f"{self.num} completions of {len(encoded)} {'image' if len(encoded) == 1 else 'images'}: {job.out}"
        )
        _output.echo_extras(gif, singles)
        return broken

    def _write_picture(
        self,
        job: _folder_job.FolderJob,
        pipe: "ImageGPTPipeline",
        encoded: dict[int, Any],
        num_kept: int,
        paths: list[Path],
        gif: Path | None,
    ) -> None:
        import torch

        from imagegpt.figures.animations import check_gif_size, reveal_frames
        from imagegpt.figures.grids import completion_grid, completion_grid_size
        from imagegpt.sampling import SamplingRules

        ids = torch.cat(list(encoded.values()))
        originals = pipe.processor.decode(ids)
        labels = [self.images[index].name for index in encoded]
        if gif is not None:
            sheet_size = completion_grid_size(len(ids), self.num, originals[0].size, has_labels=True)
            check_gif_size(sheet_size, originals[0].size, num_kept)
        with _progress.pixel_progress("completing") as progress:
            completions = pipe.complete_ids(
                ids[:, :num_kept],
                num=self.num,
                seed=job.seed,
                batch_size=job.batch_size,
                progress=progress,
                **job.rules,
            )

        def grid_of(num_shown: int | None = None) -> "Image.Image":
            return completion_grid(originals, num_kept, completions, labels, num_shown=num_shown)

        facts = {"model": job.model.model, "seed": job.seed, "rules": SamplingRules(**job.rules)}
        images = dict(zip(paths, (image for several in completions for image in several), strict=False))
        animations = {} if gif is None else {gif: reveal_frames(grid_of, originals[0].size, num_kept)}
        _output.write_pngs({**images, job.out: grid_of()}, {**facts, "keep": f"{num_kept} pixels"}, animations)


def single_names(images: list[Path], num: int) -> list[str]:
    """The file names of single completions."""
    names = [f"{path.stem}_{index}.png" for path in images for index in range(num)]
    if len(set(names)) < len(names):  # two images of the same name, from different folders
        names = [f"{row}_{path.stem}_{index}.png" for row, path in enumerate(images) for index in range(num)]
    return names
