"""Loading a model as the options say, without the noise of other libraries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imagegpt.cli._checks import check_model
from imagegpt.cli._console import say, working
from imagegpt.cli._prebuild import build_ahead

if TYPE_CHECKING:
    from imagegpt.pipeline.pipeline import ImageGPTPipeline


def quiet_libraries() -> None:
    """Silence what transformers says while loading; what matters is an error here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which model, and how it is loaded and run; the options of these names."""

    model: str
    revision: str | None
    device: str | None
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None
    decoder: Literal["sequential", "parallel"]
    max_memory: float | None

    def pipeline(self, *, speaks: bool = True) -> "ImageGPTPipeline":
        """Load the model, and say so, and which precision "auto" was, if this process is the one that speaks."""
        check_model(self.model, self.revision)
        with working(f"loading {self.model}"):
            build_ahead(self.model, self.precision, self.device)
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
        if speaks and self.precision == "auto":
            from imagegpt.common.precision import choose_precision

            say(f"precision: {choose_precision('auto', pipe.model.device)}")
        return pipe
