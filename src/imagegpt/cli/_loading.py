"""Load a model as the command-line options say, without log messages of other libraries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imagegpt.cli._checks import check_model
from imagegpt.cli._console import print_stderr, spinner
from imagegpt.cli._prebuild import prebuild_kernels

if TYPE_CHECKING:
    from imagegpt.pipeline.pipeline import ImageGPTPipeline


def quiet_libraries() -> None:
    """Silence warnings and progress bars of transformers; whatever matters raises an error in our code."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that select a model and how to run it; fields have the names of the options."""

    model: str
    revision: str | None
    device: str | None
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None = None
    decoder: Literal["sequential", "parallel"] = "sequential"
    max_memory: float | None = None

    def load_pipeline(self, *, verbose: bool = True) -> "ImageGPTPipeline":
        """Load the model; if `verbose`, print the precision that "auto" resolved to."""
        check_model(self.model, self.revision)
        with spinner(f"loading {self.model}"):
            prebuild_kernels(self.model, self.precision, self.device)
            from imagegpt.pipeline.pipeline import ImageGPTPipeline

            quiet_libraries()
            pipe = ImageGPTPipeline.from_pretrained(
                self.model,
                device=self.device,
                revision=self.revision,
                precision=self.precision,
                decoder=self.decoder,
                max_memory=None if self.max_memory is None else max(1, round(self.max_memory * 1e9)),
            )
        if verbose and self.precision == "auto":
            from imagegpt.common.precision import choose_precision

            print_stderr(f"precision: {choose_precision('auto', pipe.model.device)}")
        return pipe
