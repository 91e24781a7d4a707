"""The command line as a whole: help, errors, interruption, and the cost of imports."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import before_transformers
from imagegpt.cli import _console, _progress, app

COMMANDS = app._COMMANDS


def test_a_command_is_one_file_and_one_line():
    folder = Path(app.__file__).parent
    files = {path.stem for path in folder.glob("[a-z]*.py")} - {"app"}
    assert files == set(COMMANDS)


def test_help_names_every_command(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"imagegpt {command}" in out


def test_version(run):
    assert run("--version") == (0, "imagegpt 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [[], ["complete"], ["info"], ["train"]])
def test_missing_arguments_print_help_with_exit_code_2(run, arguments):
    status, out, err = run(*arguments)
    assert status == 2
    assert "Usage: imagegpt" in out + err
    assert "error" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "No such command 'smaple'. Did you mean 'sample'?; see imagegpt --help"),
        (["--nope"], "No such option: --nope; see imagegpt --help"),
        (["sample", "--nope"], "No such option: --nope"),
        (["sample", "--num", "many"], "Invalid value for '--num'"),
        (["sample", "more"], "Got unexpected extra argument"),
    ],
)
def test_usage_errors_are_one_sentence(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.fixture
def failing(monkeypatch):
    """Make `imagegpt models` raise an error."""

    def arrange(error):
        def fail():
            raise error

        for command in app.app.registered_commands:
            if command.callback is not None and command.callback.__name__ == "models":
                monkeypatch.setattr(command, "callback", fail)
                monkeypatch.setattr(command, "name", "models")

    return arrange


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a [red] thing\n is 3: it must be 4"), "error: a [red] thing is 3: it must be 4\n"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "error: x.png: No such file or directory\n"),
        (OSError("no place"), "error: no place\n"),
        (MemoryError(), "error: there is not enough memory: choose a smaller --batch-size, or a smaller model\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: there is not enough memory: choose a"),
    ],
)
def test_user_errors_are_one_sentence(run, failing, error, message):
    failing(error)
    status, out, err = run("models")
    assert (status, out) == (2, "")
    assert err.startswith(message)


def test_bugs_show_a_traceback(failing):
    failing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        app.main(["models"])


def test_traceback_option_shows_a_traceback_for_every_error(failing):
    failing(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        app.main(["--traceback", "models"])


def test_ctrl_c_exits_with_130(run, failing):
    failing(KeyboardInterrupt())
    assert run("models") == (130, "", "error: stopped\n")


def test_help_and_models_do_not_import_torch():
    code = (
        "import sys\nfrom imagegpt.cli import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    for argument in ("--help", "models"):
        out = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True).stdout
        assert out.splitlines()[-1] == "False False"


# Slow to import, and no business of one small image. transformers brings torch.distributed, torch._dynamo, sympy and
# scipy along whatever we do; for these it would be our doing.
SLOW_AND_NEEDLESS = [
    *("sklearn", "matplotlib", "pandas", "datasets", "pyarrow", "torchvision", "peft", "onnx", "onnxruntime"),
    *("torch._inductor.compile_fx", "torch.utils.tensorboard", "transformers.pipelines", "transformers.trainer"),
    *("transformers.models.imagegpt", "imagegpt.jobs", "imagegpt.benchmarking", "imagegpt.training.run"),
    *("imagegpt.evaluation", "imagegpt.model.tensor_parallel"),
]
if before_transformers("5.21"):  # its generate() imports sklearn
    SLOW_AND_NEEDLESS.remove("sklearn")


def test_sampling_one_image_imports_and_collects_little(workplace):
    code = (
        "import atexit, gc, json, sys\nfrom imagegpt.cli import main\n"
        "def tell(): print(json.dumps([list(sys.modules), gc.get_stats()[2]['collections'], gc.get_freeze_count()]))\n"
        "atexit.register(tell)\n"  # runs after what main registers
        "main()"
    )
    arguments = [sys.executable, "-c", code, "sample", "--model", "./tiny", "--num", "1", "--out", "x.png"]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    modules, num_full_collections, num_frozen = json.loads(out.splitlines()[-1])
    assert (workplace / "x.png").is_file()
    assert "imagegpt.pipeline.pipeline" in modules
    assert sorted(set(SLOW_AND_NEEDLESS) & set(modules)) == []
    assert num_full_collections <= 1  # 6 with Python's own thresholds, which is half a second or more
    assert num_frozen > 100_000


def test_garbage_collection_is_unchanged_within_another_program(run):
    before = gc.get_threshold()
    assert run("models")[0] == 0
    assert gc.get_threshold() == before


def test_progress_is_silent_without_a_terminal(capsys):
    with _console.spinner("working"), _progress.pixel_progress("drawing") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
