"""Runs that are killed, grown, shared out or refused: the files are always those of an undisturbed run."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import imagegpt
from imagegpt import ColorPalette
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import locked
from imagegpt.jobs import sample
from imagegpt.jobs import sample_folder as places
from imagegpt.jobs.image_formats import count_images
from imagegpt.jobs.ranks import Workers
from imagegpt.jobs.sample import default_block, model_fingerprint, sample_many
from imagegpt.sampling import SamplingRules, image_seed

FORMATS = ["png", "npz", "arrow"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it. The real one is in tests/cli/test_sample_killed.py."""


@pytest.fixture
def kill_at_write(monkeypatch):
    """Make the run end at its n-th write of images: before it, or with its temporary file left behind."""

    def arrange(n, leaves_temporary):
        writes = iter(range(1, 1000))

        def write(path, content, what, **options):
            if next(writes) < n:
                return atomic_write(path, content, what, **options)
            if leaves_temporary:
                path.with_name(f".{path.name}.0123abcd.tmp").write_bytes(content[: len(content) // 2])
            raise Killed

        monkeypatch.setattr(sample, "atomic_write", write)

    return arrange


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("leaves_temporary", [True, False])
def test_a_run_killed_again_and_again_gives_the_same_files(
    many, contents, tmp_path, monkeypatch, kill_at_write, file_format, leaves_temporary
):
    many(14, "undisturbed", file_format=file_format)
    random = np.random.default_rng(0)
    num_kills, there = 0, 0
    while num_kills < 50:
        kill_at_write(random.integers(1, 7) if file_format == "png" else random.integers(1, 3), leaves_temporary)
        try:
            num_drawn = many(14, file_format=file_format)
            break
        except Killed:
            num_kills += 1
            now = count_images(tmp_path / "run")[0]
            assert now >= there
            there = now
    assert num_kills >= 2
    assert num_drawn == 14 - there  # what was there has not been drawn again
    assert contents() == contents("undisturbed")


def test_blocks_are_drawn_whole_and_only_where_something_is_missing(many, contents, tmp_path, blocks_drawn):
    seeds = [image_seed(5, index) for index in range(16)]
    blocks = [tuple(seeds[start : start + 4]) for start in range(0, 16, 4)]
    assert many(14) == 14
    assert blocks_drawn == blocks  # the last one, too, though two of its images are not asked for
    whole = contents()
    for index in (5, 6, 13):
        (tmp_path / f"run/0000/{index:08d}.png").unlink()
    blocks_drawn.clear()
    assert many(14) == 3
    assert blocks_drawn == [blocks[1], blocks[3]]
    assert contents() == whole
    blocks_drawn.clear()
    assert many(14) == 0
    assert not blocks_drawn


def test_leftovers_of_a_killed_run_are_removed(many, contents, tmp_path):
    many(6)
    whole = contents()
    (tmp_path / "run/0000/00000002.png").unlink()
    for name in ("0000/.00000002.png.0123abcd.tmp", ".run.json.0123abcd.tmp"):
        (tmp_path / "run" / name).write_text("half")
    assert many(6) == 1
    assert contents() == whole


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_was_being_written_is_not_there(many, contents, monkeypatch, file_format):
    many(6, "undisturbed", file_format=file_format)
    write_bytes, writes = Path.write_bytes, []

    def half(path, content):
        writes.append(path)
        if len(writes) == 3:  # the first is run.json
            write_bytes(path, content[: len(content) // 2])
            raise Killed
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(Killed):
        many(6, file_format=file_format)
    assert contents().items() < contents("undisturbed").items()
    assert len(contents()) == 2
    many(6, file_format=file_format)
    assert contents() == contents("undisturbed")


def test_a_run_killed_while_it_wrote_its_first_file_starts_anew(many, contents, tmp_path):
    many(6, "undisturbed")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.run.json.0123abcd.tmp").write_text("half")
    assert many(6) == 6
    assert contents() == contents("undisturbed")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_run_may_grow(many, contents, file_format, kill_at_write, monkeypatch):
    many(15, "undisturbed", file_format=file_format)
    many(2, file_format=file_format)
    kill_at_write(1, leaves_temporary=False)
    with pytest.raises(Killed):  # which leaves a shard of two images in a run of six
        many(6, file_format=file_format)
    monkeypatch.setattr(sample, "atomic_write", atomic_write)
    many(15, file_format=file_format)
    assert contents() == contents("undisturbed")


def test_the_block_size_of_the_run_that_is_there_is_kept(many, contents, blocks_drawn):
    many(3)
    many(9, batch_size=None)
    assert {len(seeds) for seeds in blocks_drawn} == {4}
    many(9, "undisturbed")
    assert contents() == contents("undisturbed")


def share_out(many, num, world_size, **options):
    """Draw with several processes' worth of threads, the first of which comes last; how many each has drawn."""
    drawn = {}

    def work(rank):
        drawn[rank] = many(num, workers=Workers(rank=rank, world_size=world_size, wait_s=20), **options)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in reversed(range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [drawn.get(rank) for rank in range(world_size)]


@pytest.mark.parametrize("file_format", FORMATS)
def test_several_processes_give_the_same_files(many, contents, file_format):
    many(22, "undisturbed", file_format=file_format)
    assert share_out(many, 22, 3, file_format=file_format) == [8, 8, 6]
    assert contents() == contents("undisturbed")


def test_several_processes_go_on_where_another_number_was_killed(many, contents, kill_at_write, monkeypatch, tmp_path):
    many(22, "undisturbed")
    kill_at_write(10, leaves_temporary=True)
    with pytest.raises(Killed):
        many(22)
    monkeypatch.setattr(sample, "atomic_write", atomic_write)
    assert sum(share_out(many, 22, 2)) == 22 - 9
    assert contents() == contents("undisturbed")


def test_several_processes_let_a_run_grow_and_replace_it(many, contents):
    many(22, "undisturbed")
    many(3)
    assert sum(share_out(many, 22, 2)) == 19
    assert contents() == contents("undisturbed")
    many(22, "other", seed=6)
    assert share_out(many, 22, 2, seed=6, force=True) == [12, 10]
    assert contents() == contents("other")


def test_a_process_leaves_the_others_temporary_files_alone(many, tmp_path):
    many(8)
    (tmp_path / "run/0000/00000001.png").unlink()
    theirs, mine = (tmp_path / f"run/0000/.0000000{index}.png.0123abcd.tmp" for index in (1, 5))
    for path in (theirs, mine):
        path.write_text("half")
    assert many(8, workers=Workers(rank=1, world_size=2)) == 0
    assert theirs.exists()
    assert not mine.exists()


def test_a_process_does_not_wait_for_the_first_one_for_ever(many, tmp_path):
    with pytest.raises(TimeoutError, match=r"process 0 has not written .*run\.json for this run in 0\.1 s: see what"):
        many(8, workers=Workers(rank=1, world_size=2, wait_s=0.1))
    assert not (tmp_path / "run").exists()


def test_the_first_process_does_not_wait_for_the_others_for_ever(many):
    message = "4 of 8 images in .* are missing and none came for .* s: see what became of the other processes"
    with pytest.raises(TimeoutError, match=message):
        many(8, workers=Workers(rank=0, world_size=2, wait_s=0.1))
    assert many(8) == 4


def test_another_run_in_the_same_folder_is_refused(many, tmp_path):
    many(3)
    refused = pytest.raises(ValueError, match=r"another process draws images into .*run: wait for it, or end it first")
    with locked(tmp_path / "run", "paints"), refused:
        many(9)
    assert many(9) == 6


def test_a_share_is_drawn_by_one_process_at_a_time(many, tmp_path):
    many(4)
    second = Workers(rank=1, world_size=2, wait_s=0.1)
    with places.locked_share(tmp_path / "run", second), pytest.raises(ValueError, match="another process draws images"):
        many(4, workers=second)
    assert many(4, workers=second) == 0


def test_a_run_is_not_replaced_while_another_process_draws_its_share(many, contents, tmp_path):
    many(4)
    before = contents()
    second = Workers(rank=1, world_size=2)
    with places.locked_share(tmp_path / "run", second), pytest.raises(ValueError, match="another process draws images"):
        many(4, seed=6, force=True)
    assert contents() == before
    assert many(4, seed=6, force=True) == 4


def test_a_process_whose_run_was_replaced_draws_nothing(many, contents, tmp_path, monkeypatch):
    many(8, "other", seed=6)
    many(4)
    agreed = sample._agreed

    def replaced_meanwhile(*args):
        settings = agreed(*args)
        (tmp_path / "run/run.json").write_bytes((tmp_path / "other/run.json").read_bytes())
        return settings

    monkeypatch.setattr(sample, "_agreed", replaced_meanwhile)
    before = contents().keys()
    with pytest.raises(ValueError, match="was replaced by another one: give the same command again"):
        many(4, workers=Workers(rank=1, world_size=2))
    assert contents().keys() == before


REFUSED = {
    "seed": ({"seed": 6}, r"another seed \(5, not 6\): give the same, choose another folder, or replace it"),
    "rules": (
        {"rules": SamplingRules(temperature=0.5, top_p=0.9)},
        r"another temperature \(1.0, not 0.5\) and another top_p \(None, not 0.9\)",
    ),
    "format": ({"file_format": "npz"}, r"another format \(png, not npz\)"),
    "block": ({"batch_size": 5}, r"another batch_size \(4, not 5\)"),
    "fewer": ({"num": 3}, r"another num \(6, not 3: it may only grow\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_with_other_settings_is_refused_by_their_names_and_replaced_by_force(many, contents, tmp_path, case):
    options, message = REFUSED[case]
    options = {"num": 6, **options}
    many(6)
    before = contents()
    with pytest.raises(ValueError, match=message):
        many(**options)
    with pytest.raises(ValueError, match=message):
        many(**options, workers=Workers(rank=1, world_size=2))
    assert contents() == before
    assert many(**options, force=True) == options["num"]
    many(**options, folder="undisturbed")
    assert contents() == contents("undisturbed")
    assert (tmp_path / "run/0000").exists() == (case != "format")


def test_other_models_are_refused(many, make_pipe, pipe):
    colors = np.linspace(-1, 1, 16)[:, None] * np.ones(3) * 0.99
    changed = {
        "weights": make_pipe(seed=1),
        "palette": make_pipe(ColorPalette(colors)),
        "arithmetic": make_pipe(layer_norm_epsilon=1e-3),
        "heads": make_pipe(n_head=8),
    }
    many(6)
    assert len({model_fingerprint(one) for one in (pipe, *changed.values())}) == 5
    for other in changed.values():
        with pytest.raises(ValueError, match=r"another model \(other weights, palette or configuration of tiny\)"):
            many(6, pipe=other)
        with pytest.raises(ValueError, match=r"another model \(tiny, not big\)"):
            many(6, pipe=other, name="big")
    with pytest.raises(ValueError, match=r"with another precision \(float32, not float64\) and another backend"):
        many(6, pipe=make_pipe(dtype=torch.float64))


def test_another_version_is_refused(many, monkeypatch):
    many(6)
    monkeypatch.setattr(imagegpt, "__version__", "9.9.9")
    with pytest.raises(ValueError, match=r"another version \(0\.1\.0, not 9\.9\.9\)"):
        many(7)


def test_the_same_model_under_another_name_goes_on_and_keeps_its_name(many, contents, make_pipe):
    again = make_pipe()
    again.model.config._name_or_path = "/elsewhere"
    many(3)
    assert many(6, pipe=again, name="copy") == 3
    many(6, "undisturbed")
    assert contents() == contents("undisturbed")


def test_a_model_without_a_name_is_called_after_its_fingerprint(many, pipe, tmp_path):
    many(1, name=None)
    assert f'"model": "ImageGPT {model_fingerprint(pipe)[:12]}"' in (tmp_path / "run/run.json").read_text()


def test_force_with_the_same_settings_goes_on(many):
    many(6)
    assert many(8, force=True) == 2


def test_force_deletes_nothing_of_others(many, contents, tmp_path):
    many(6)
    (tmp_path / "run/0000/cat.png").write_text("mine")
    before = contents()
    with pytest.raises(ValueError, match=r"holds 0000/cat\.png, which is no part of a run"):
        many(6, seed=1, force=True)
    assert contents() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, r"num is 0: it must be a whole number from 1 to 100,000,000"),
        ({"num": 10**8 + 1}, r"num is 100000001: it must be a whole number from 1 to 100,000,000"),
        ({"num": True}, "num is True"),
        ({"num": 2.0}, "num is 2.0"),
        ({"num": 2, "seed": -1}, "seed is -1: it must be a whole number from 0"),
        ({"num": 2, "batch_size": 0}, "batch_size is 0: it must be a whole number from 1 to 65,536"),
        ({"num": 2, "file_format": "jpg"}, "the format is 'jpg': choose one of png, npz, arrow"),
        ({"num": 2, "folder": "no/run"}, "there is no folder .*no: make it first, or choose another place"),
        ({"num": 2, "folder": "file"}, "file is a file: many images need a folder"),
    ],
)
def test_bad_arguments_are_one_sentence_and_leave_nothing(many, tmp_path, options, message):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ValueError, OSError), match=message):
        many(**options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_whose_settings_cannot_be_written_is_not_left_behind(many, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr("imagegpt.jobs.sample_folder.atomic_write", fail)
    with pytest.raises(OSError, match="no space"):
        many(2)
    assert not list(tmp_path.iterdir())


def test_progress_counts_from_what_is_there_to_all(many):
    seen = []
    many(10, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (0.25, 10) in seen  # a sixteenth of four images
    seen.clear()
    many(12, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (10, 12)
    seen.clear()
    many(12, progress=lambda done, total: seen.append((done, total)), workers=Workers(rank=1, world_size=2))
    assert not seen


def test_the_default_block_depends_on_the_model_alone(make_pipe):
    assert default_block(make_pipe()) == 128
    large = make_pipe(n_embd=512, n_layer=2)
    large.model.config.n_positions = 1 << 14  # 16,384 pixels x 2 blocks x 2 x 512 numbers x 4 bytes = 128 MiB an image
    assert default_block(large) == 7  # and the noise
    large.model.config.n_positions = 1 << 20
    assert default_block(large) == 1


def test_a_run_keeps_its_backend(make_pipe, tmp_path):
    """Others round otherwise: a run that went on with another was not the one it would have been."""
    sample_many(make_pipe(backend="cpp"), 3, tmp_path / "run", batch_size=2)
    assert '"backend": "cpp"' in (tmp_path / "run" / "run.json").read_text()
    other = make_pipe(backend="torch")
    with pytest.raises(ValueError, match=r"was made with another backend \(cpp, not torch\): give the same"):
        sample_many(other, 5, tmp_path / "run", batch_size=2)
    assert sample_many(make_pipe(backend="cpp"), 5, tmp_path / "run", batch_size=2) == 2
    assert sample_many(other, 5, tmp_path / "run", batch_size=2, force=True) == 5
    assert '"backend": "torch"' in (tmp_path / "run" / "run.json").read_text()
