"""`imagegpt sample`: the images a seed stands for, and where they go."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt import ImageGPTPipeline
from imagegpt.cli import _folder_job, _progress
from imagegpt.jobs.ranks import Ranks
from imagegpt.sampling import Sampler

MODEL = ("--model", "./tiny")


def picture(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_samples_are_the_pipelines(run, workplace, names_in):
    options = ["--num", 3, "--seed", 4, "--temperature", 0.8, "--top-p", 0.9, "--min-p", 0.01, "--batch-size", 2]
    status, out, err = run("sample", *MODEL, *options, "--singles", "each")
    assert (status, err) == (0, "")
    assert out == "3 samples: samples.png\none by one: each\n"
    assert names_in() == ["each", "sample_0.png", "sample_1.png", "sample_2.png", "samples.png"]
    pipe = ImageGPTPipeline.from_pretrained(workplace / "tiny")
    expected = pipe.sample(3, seed=4, temperature=0.8, top_p=0.9, min_p=0.01)
    for index, image in enumerate(expected):
        assert np.array_equal(np.asarray(picture(f"each/sample_{index}.png")), np.asarray(image))
    text = picture("each/sample_2.png").text
    assert (text["seed"], text["rules"]) == ("4", "temperature 0.8, top-p 0.9, min-p 0.01")


def test_min_p_excludes_colours(run, workplace):
    assert run("sample", *MODEL, "--num", 4, "--min-p", 1, "--singles", "likeliest")[0] == 0
    assert run("sample", *MODEL, "--num", 4, "--temperature", 0, "--singles", "greedy", "--out", "g.png")[0] == 0
    for index in range(4):
        likeliest, greedy = (picture(f"{folder}/sample_{index}.png") for folder in ("likeliest", "greedy"))
        assert np.array_equal(np.asarray(likeliest), np.asarray(greedy))


def test_greedy_samples_are_all_alike(run, workplace):
    assert run("sample", *MODEL, "--num", 2, "--temperature", 0, "--singles", "each")[0] == 0
    first, second = (picture(f"each/sample_{index}.png") for index in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_an_animation_ends_with_the_picture(run, workplace, names_in):
    status, out, _ = run("sample", *MODEL, "--num", 2, "--gif", "samples.gif")
    assert (status, out) == (0, "2 samples: samples.png\nas they appear: samples.gif\n")
    assert names_in() == ["samples.gif", "samples.png"]
    with Image.open("samples.gif") as animation:
        assert animation.n_frames == 17
        animation.seek(16)
        last = np.asarray(animation.convert("RGB"))
    assert np.array_equal(last, np.asarray(picture("samples.png")))


@pytest.mark.parametrize("name", ["many", "existing.png"])
def test_a_folder_gets_a_file_an_image(run, workplace, names_in, name):
    if name != "many":
        (workplace / name).mkdir()
    options = ["--num", 5, "--seed", 4, "--top-k", 3, "--min-p", 0.1, "--batch-size", 2]
    status, out, err = run("sample", *MODEL, *options, "--out", name)
    assert (status, out, err) == (0, f"5 images: {name}\n", "")
    assert names_in() == sorted(
        [".imagegpt", "00000.done", "0000", *(f"0000000{index}.png" for index in range(5)), name, "run.json"]
    )
    expected = ImageGPTPipeline.from_pretrained(workplace / "tiny").sample(5, seed=4, top_k=3, min_p=0.1)
    for index, image in enumerate(expected):
        drawn = picture(f"{name}/0000/0000000{index}.png")
        assert np.array_equal(np.asarray(drawn), np.asarray(image))
        assert drawn.text["model"] == "./tiny"


def test_a_folder_of_shards(run, workplace, names_in):
    assert run("sample", *MODEL, "--num", 300, "--format", "npz", "--out", "ids")[0] == 0
    names = [".imagegpt", "00000.done", "00000000.npz", "00000256.npz", "00001.done", "ids", "run.json"]
    assert names_in() == names


def test_the_same_command_goes_on(run, workplace):
    command = ["sample", *MODEL, "--batch-size", 2, "--out", "many"]
    run(*command, "--num", 3)
    status, out, err = run(*command, "--num", 5)
    assert (status, out) == (0, "5 images: many\n")
    assert err == "resuming: 3 of 5 images are done\n"


def test_force_replaces_a_run(run, workplace):
    run("sample", *MODEL, "--num", 3, "--out", "many")
    before = (workplace / "many/0000/00000000.png").read_bytes()
    status, _, err = run("sample", *MODEL, "--num", 3, "--seed", 1, "--out", "many")
    assert status == 2
    assert err.startswith("error: the images in many were made with another seed (0, not 1): give the same")
    assert run("sample", *MODEL, "--num", 3, "--seed", 1, "--out", "many", "--force")[0] == 0
    assert (workplace / "many/0000/00000000.png").read_bytes() != before


def test_a_folder_is_refused_before_the_model_is_loaded(run, workplace, monkeypatch):
    monkeypatch.setattr(_folder_job._loading.ModelOptions, "load_pipeline", lambda _: pytest.fail("it loaded"))
    status, _, err = run("sample", *MODEL, "--out", ".")
    assert status == 2
    assert "which is no part of a run of images" in err


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stop", "code"), [(interrupt, 130), (lambda: os.kill(os.getpid(), signal.SIGTERM), 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_run_that_is_stopped_says_how_to_go_on(run, workplace, monkeypatch, stop, code):
    generate, calls, handler = Sampler.generate, [], signal.getsignal(signal.SIGTERM)

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            stop()
        return generate(*args, **options)

    monkeypatch.setattr(Sampler, "generate", stopped)
    command = ["sample", *MODEL, "--num", 7, "--batch-size", 2, "--out", "many"]
    status, out, err = run(*command)
    assert (status, out) == (code, "")
    assert err == "stopped: 4 of 7 images are in many; the same command resumes from there\n"
    assert signal.getsignal(signal.SIGTERM) == handler
    assert run(*command)[0] == 0


def test_processes_other_than_the_first_are_silent(run, workplace, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run("sample", *MODEL, "--num", 6, "--batch-size", 2, "--out", "many") == (0, "", "")
    assert len(list((workplace / "many/0000").iterdir())) == 6  # nobody else did


def test_the_result_as_json(run, workplace):
    status, out, _ = run("sample", *MODEL, "--num", 3, "--out", "many", "--json")
    found = json.loads(out)
    assert (status, found.pop("seconds") > 0) == (0, True)
    assert found == {"folder": "many", "num_images": 3, "num_new": 3}
    status, out, _ = run("sample", *MODEL, "--num", 2, "--out", "a.png", "--json")
    assert (status, json.loads(out)) == (0, {"num_images": 2, "path": "a.png", "singles": []})


@pytest.mark.slow
def test_worker_processes_give_the_same_files(run, workplace):
    def contents(folder):
        return {path.name: path.read_bytes() for path in (workplace / folder).rglob("*.png")}

    assert run("sample", *MODEL, "--num", 600, "--out", "one")[0] == 0
    assert run("sample", *MODEL, "--num", 600, "--out", "two", "--workers", 2)[:2] == (0, "600 images: two\n")
    assert contents("one") == contents("two")


@pytest.mark.parametrize(
    ("ranks", "given", "gpus", "expected"),
    [
        (Ranks(), None, 4, None),
        (Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2), None, 0, None),
        (Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2), None, 4, "cuda:1"),
        (Ranks(rank=6, world_size=8, local_rank=2, local_world_size=4), "cuda", 4, "cuda:2"),
        (Ranks(rank=3, world_size=4, local_rank=3, local_world_size=4), None, 2, "cuda:1"),
        (Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2), "cpu", 4, "cpu"),
        (Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2), "cuda:0", 4, "cuda:0"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, ranks, given, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _folder_job.device_of(ranks, given) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0, 50_000, 0, 0), "0 of 50,000 images"),
        ((1500, 50_000, 0, 3), "1,500 of 50,000 images"),
        ((2000.7, 50_000, 1000, 10), "2,000 of 50,000 images, 100 images/s, 0:08:00 left"),
        ((10, 50, 1, 4), "10 of 50 images, 0.25 images/s, 0:02:40 left"),
        ((0.5, 1000, 0.5, 100), "0 of 1,000 images, 0.005 images/s, 55:31:40 left"),
    ],
)
def test_progress_in_words(numbers, expected):
    assert _progress.progress_text(*numbers) == expected


def test_without_a_terminal_there_is_a_line_a_minute(run, workplace, monkeypatch):
    monkeypatch.setattr(_progress, "_LOG_INTERVAL_S", 0.0)
    err = run("sample", *MODEL, "--num", 4, "--batch-size", 2, "--out", "many")[2].splitlines()
    assert err[0] == "sampling: 0 of 4 images"
    assert all(line.startswith("sampling: ") for line in err)
    assert err[-1].startswith("sampling: 4 of 4 images, ")
    assert err[-1].endswith("0:00:00 left")


FOLDER = ("--out", "many")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "0"], "Invalid value for '--num'"),
        (["--out", "x.gif"], "--out is x.gif: images are written as PNG"),
        (
            ["--out", "v0.9"],
            "--out is v0.9: images are written as PNG, choose a name that ends in .png, or one without",
        ),
        (["--out", "cat.png"], "cat.png exists already: give --force to overwrite it"),
        (["--model", "openai/imagegpt-small"], "'openai/imagegpt-small' is not on this machine and huggingface.co"),
        (["--temperature", "nan"], "Invalid value for '--temperature'"),
        (["--temperature", "inf"], "Invalid value for '--temperature': inf is not a number from 0 to 1,000"),
        (["--min-p", "2"], "Invalid value for '--min-p': 2 is not a number from 0 to 1"),
        (["--gif", "x.png"], "--gif is x.png: animations are written as GIF"),
        (["--format", "npz"], "--format npz is for many images in a folder: give --out a name without .png"),
        ([*FOLDER, "--num", "0"], "Invalid value for '--num'"),
        (
            [*FOLDER, "--num", "100000001"],
            "Invalid value for '--num': 100000001 is not an integer from 1 to 100,000,000",
        ),
        (
            [*FOLDER, "--seed", str(2**64)],
            f"Invalid value for '--seed': {2**64} is not an integer from 0 to 2^64 - 1",
        ),
        ([*FOLDER, "--top-p", "0"], "Invalid value for '--top-p': 0 is not a number greater than 0 and at most 1"),
        ([*FOLDER, "--min-p", "2"], "Invalid value for '--min-p': 2 is not a number from 0 to 1"),
        (
            [*FOLDER, "--batch-size", "65537"],
            "Invalid value for '--batch-size': 65537 is not an integer from 1 to 65,536",
        ),
        ([*FOLDER, "--format", "jpg"], "Invalid value for '--format'"),
        (["--workers", "2"], "--out samples.png is one picture, which several processes cannot share: give a folder"),
        ([*FOLDER, "--singles", "each"], "--singles each belongs to a picture and --out many is a folder"),
        ([*FOLDER, "--gif", "x.gif"], "--gif x.gif belongs to a picture and --out many is a folder"),
        ([*FOLDER, "--precision", "int4"], "Invalid value for '--precision': Value error, 'int4' is not one of"),
        ([*FOLDER, "--device", "cuda:77"], "there is no device 'cuda:77' here"),
        ([*FOLDER, "--model", "./nothing"], "there is no folder ./nothing: check the path"),
        (["--out", "no/many"], "there is no folder no: create it first, or choose another path"),
        (["--out", "tiny"], "tiny holds "),
        (["--out", "."], ". holds "),
        (["--out", "/proc/many"], "/proc/many cannot be made (No such file or directory)"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, workplace, names_in, arguments, message):
    status, out, err = run("sample", *MODEL, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert names_in() == []


@pytest.mark.parametrize(
    ("environment", "out", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "x.png", "--out x.png is one picture, which several processes cannot share"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "many", "rank is 2 of 2 processes"),
        ({"RANK": "0"}, "many", "RANK is set and its twin is not"),
    ],
)
def test_processes_that_make_no_sense_are_refused(run, workplace, names_in, monkeypatch, environment, out, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, _, err = run("sample", *MODEL, "--out", out)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert names_in() == []
