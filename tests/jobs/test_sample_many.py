"""Sampling jobs that are killed, grown, shared or refused: the files are always those of an undisturbed job."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import imagegpt
from imagegpt import ColorPalette
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import BusyError
from imagegpt.jobs import image_job
from imagegpt.jobs.image_job import ImageJob, model_fingerprint
from imagegpt.jobs.markers import Markers, joined
from imagegpt.jobs.ranks import Ranks
from imagegpt.jobs.sample import default_batch_size, sample_many
from imagegpt.sampling import SamplingRules, image_seed

FORMATS = ["png", "npz", "arrow", "parquet"]


class Killed(BaseException):
    """In place of SIGKILL: nothing may catch it. The real one is in tests/cli/test_sample_killed.py."""


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

        monkeypatch.setattr(image_job, "atomic_write", write)

    return arrange


def num_images(folder):
    """The images in the files of a folder that will have 14, in shards of four."""
    shards = [path for path in folder.glob("[0-9]*.*") if not path.is_dir()]
    return len([*folder.glob("0*/0*.png")]) + sum(2 if "12." in path.name else 4 for path in shards)


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
            now = num_images(tmp_path / "run")
            assert now >= there
            there = now
    assert num_kills >= 2
    assert num_drawn == 14 - there  # what was there has not been drawn again
    assert contents() == contents("undisturbed")


def test_only_missing_images_are_sampled_whatever_the_batch(many, contents, tmp_path, batches):
    seeds = [image_seed(5, index) for index in range(14)]
    assert many(14, batch_size=3) == 14
    assert [seed for batch in batches for seed in batch] == seeds
    assert {len(batch) for batch in batches} == {1, 2, 3}  # shards of four
    whole = contents()
    for index in (5, 6, 13):
        (tmp_path / f"run/0000/{index:08d}.png").unlink()
    batches.clear()
    with pytest.warns(UserWarning, match=r"0000000?\d+.png is missing and is made again$"):
        assert many(14) == 3
    assert batches == [tuple(seeds[5:7]), (seeds[13],)]
    assert contents() == whole
    batches.clear()
    assert many(14) == 0
    assert not batches


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_batch_size_changes_nothing(many, contents, file_format):
    many(9, file_format=file_format)
    for batch_size in (1, 2, 3, 9):
        many(9, f"by {batch_size}", batch_size=batch_size, file_format=file_format)
        assert contents(f"by {batch_size}") == contents()


def test_batches_are_always_the_same_where_they_change_the_last_bits(many, contents, make_pipe, tmp_path, monkeypatch):
    """Whole batches also beyond the last image: it must not matter how many images are asked for at first."""
    pipe, seen = make_pipe(backend="torch"), []
    generate = pipe.sampler.generate
    monkeypatch.setattr(
        pipe.sampler, "generate", lambda *a, seeds, **k: (seen.append(tuple(seeds)), generate(*a, seeds=seeds, **k))[1]
    )
    seeds = [image_seed(5, index) for index in range(8)]
    many(6, pipe=pipe, batch_size=3)
    assert seen == [tuple(seeds[:3]), (seeds[3],), tuple(seeds[4:7])]
    (tmp_path / "run/0000/00000001.png").unlink()
    seen.clear()
    with pytest.warns(UserWarning, match="is missing"):
        many(6, pipe=pipe, batch_size=3)
    assert seen == [tuple(seeds[:3])]
    with pytest.raises(ValueError, match=r"another batch_size \(3, not 2\)"):
        many(6, pipe=pipe, batch_size=2)


def test_leftovers_of_a_killed_run_are_removed(many, contents, tmp_path):
    many(6)
    whole = contents()
    (tmp_path / "run/0000/00000002.png").unlink()
    (tmp_path / "run/.imagegpt/00000.done").unlink()
    for name in ("0000/.00000002.png.0123abcd.tmp", ".run.json.0123abcd.tmp", ".imagegpt/.00000.done.0123abcd.tmp"):
        (tmp_path / "run" / name).write_text("half")
    assert many(6) == 1
    assert contents() == whole


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_half_written_file_does_not_count(many, contents, monkeypatch, file_format):
    many(6, "undisturbed", file_format=file_format)
    write_bytes, writes = Path.write_bytes, []

    def half(path, content):
        if f".{file_format}." in path.name:
            writes.append(path)
            if len(writes) == 2:
                write_bytes(path, content[: len(content) // 2])
                raise Killed
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(Killed):
        many(6, file_format=file_format)
    assert contents().items() < contents("undisturbed").items()
    many(6, file_format=file_format)
    assert contents() == contents("undisturbed")


def test_a_job_killed_while_it_wrote_its_first_file_starts_over(many, contents, tmp_path):
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
    monkeypatch.setattr(image_job, "atomic_write", atomic_write)
    many(15, file_format=file_format)
    assert contents() == contents("undisturbed")


def test_the_shard_size_of_the_folder_is_kept(many, contents):
    many(3, file_format="npz")
    many(9, shard_size=None, file_format="npz")
    many(9, "undisturbed", file_format="npz")
    assert contents() == contents("undisturbed")


def share(many, num, world_size, **options):
    """Sample with several processes' worth of threads; what each of them returned or raised."""
    results = {}

    def work(rank):
        try:
            results[rank] = many(num, ranks=Ranks(rank=rank, world_size=world_size), **options)
        except BusyError as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in reversed(range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(world_size)]


@pytest.mark.parametrize("file_format", FORMATS)
def test_several_processes_give_the_same_files(many, contents, batches, file_format):
    many(22, "undisturbed", file_format=file_format)
    batches.clear()
    assert all(0 <= num_new <= 22 for num_new in share(many, 22, 3, file_format=file_format))
    assert contents() == contents("undisturbed")
    assert sorted(seed for batch in batches for seed in batch) == sorted(image_seed(5, index) for index in range(22))


def test_several_processes_resume_what_another_number_began(many, contents, kill_at_write, monkeypatch):
    many(22, "undisturbed")
    kill_at_write(10, leaves_temporary=True)
    with pytest.raises(Killed):
        many(22)
    monkeypatch.setattr(image_job, "atomic_write", atomic_write)
    share(many, 22, 2)
    assert contents() == contents("undisturbed")


def test_several_processes_let_a_job_grow_and_replace_it(many, contents):
    many(22, "undisturbed")
    many(3)
    share(many, 22, 2)
    assert contents() == contents("undisturbed")
    many(22, "other", seed=6)
    share(many, 22, 2, seed=6, force=True)
    assert contents() == contents("other")


def test_a_process_may_join_later_and_takes_over_a_dead_ones_shard(many, contents, tmp_path, monkeypatch):
    """A thread holds a shard like a process that hangs; when its lock is released, the other makes the shard."""
    many(8, "undisturbed")
    many(1)
    (tmp_path / "run/.imagegpt/00000.done").unlink()
    claim = Markers(tmp_path / "run", "samples").claim(0)
    claim.__enter__()
    thread = threading.Thread(target=lambda: many(8))
    thread.start()
    while not (tmp_path / "run/.imagegpt/00001.done").exists():
        assert thread.is_alive()
    thread.join(0.5)
    assert thread.is_alive()
    claim.__exit__(RuntimeError, RuntimeError(), None)  # as when the process dies: without a marker
    thread.join()
    assert contents() == contents("undisturbed")


def test_a_process_leaves_temporary_files_of_claimed_shards_alone(many, tmp_path):
    many(8)
    (tmp_path / "run/0000/00000001.png").unlink()
    theirs, mine = (tmp_path / f"run/0000/.0000000{index}.png.0123abcd.tmp" for index in (1, 5))
    for path in (theirs, mine):
        path.write_text("half")
    for shard in (0, 1):
        (tmp_path / f"run/.imagegpt/0000{shard}.done").unlink()
    with Markers(tmp_path / "run", "samples").claim(0):
        thread = threading.Thread(target=lambda: many(8))
        thread.start()
        while mine.exists():
            assert thread.is_alive()
        assert theirs.exists()
    thread.join()
    assert not theirs.exists()


@pytest.mark.parametrize("options", [{"num": 5}, {"num": 4, "seed": 6, "force": True}])
def test_a_folder_is_neither_grown_nor_replaced_while_others_are_at_work(many, contents, tmp_path, options):
    many(4)
    before = contents()
    refused = pytest.raises(BusyError, match=r"another process samples images into .*run: wait for it, or end it first")
    with joined(tmp_path / "run", ImageJob.doing, lambda _: None), refused:
        many(**options)
    assert contents() == before
    assert many(**options) > 0


REFUSED = {
    "seed": ({"seed": 6}, r"another seed \(5, not 6\): give the same, choose another folder, or replace them"),
    "rules": (
        {"rules": SamplingRules(temperature=0.5, top_p=0.9)},
        r"another temperature \(1.0, not 0.5\) and another top_p \(None, not 0.9\)",
    ),
    "format": ({"file_format": "npz"}, r"another format \(png, not npz\)"),
    "shard size": ({"shard_size": 5}, r"another shard_size \(4, not 5\)"),
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
        many(**options, ranks=Ranks(rank=1, world_size=2))
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
        ({"num": 0}, r"num is 0: it must be an integer from 1 to 100,000,000"),
        ({"num": 10**8 + 1}, r"num is 100000001: it must be an integer from 1 to 100,000,000"),
        ({"num": True}, "num is True"),
        ({"num": 2.0}, "num is 2.0"),
        ({"num": 2, "seed": -1}, "seed is -1: it must be an integer from 0"),
        ({"num": 2, "shard_size": 0}, "shard_size is 0: it must be"),
        ({"num": 2, "batch_size": 0}, "batch_size is 0: it must be an integer from 1 to 65,536"),
        ({"num": 2, "file_format": "jpg"}, "the format is 'jpg': choose one of png, npz, arrow, parquet"),
        ({"num": 2, "folder": "no/run"}, "there is no folder .*no: create it first, or choose another path"),
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

    monkeypatch.setattr("imagegpt.jobs.sampling_settings.atomic_write", fail)
    with pytest.raises(OSError, match="no space"):
        many(2)
    assert not list(tmp_path.iterdir())


def test_progress_counts_from_what_exists_to_all(many):
    seen = []
    many(10, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (0.25, 10) in seen  # a sixteenth of four images
    seen.clear()
    many(12, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (10, 12)


def test_the_default_batch_depends_on_the_model_alone_where_it_changes_bits(make_pipe):
    assert default_batch_size(make_pipe()) == 128
    large = make_pipe(n_embd=512, n_layer=2)
    large.model.config.n_positions = 1 << 14  # 16,384 pixels x 2 blocks x 2 x 512 numbers x 4 bytes = 128 MiB an image
    assert default_batch_size(large) == 7  # and the noise
    large.model.config.n_positions = 1 << 20
    assert default_batch_size(large) == 1


def test_a_run_keeps_its_backend(make_pipe, tmp_path):
    """Others round otherwise: a run that went on with another was not the one it would have been."""
    sample_many(make_pipe(backend="cpp"), 3, tmp_path / "run", batch_size=2)
    assert '"backend": "cpp"' in (tmp_path / "run" / "run.json").read_text()
    other = make_pipe(backend="torch")
    with pytest.raises(ValueError, match=r"were made with another backend \(cpp, not torch\): give the same"):
        sample_many(other, 5, tmp_path / "run", batch_size=2)
    assert sample_many(make_pipe(backend="cpp"), 5, tmp_path / "run", batch_size=2).num_new == 2
    assert sample_many(other, 5, tmp_path / "run", batch_size=2, force=True).num_new == 5
    assert '"backend": "torch"' in (tmp_path / "run" / "run.json").read_text()
