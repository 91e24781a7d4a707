"""Regressions: numbers that once caused garbage, tracebacks, hangs or gigabytes of memory are refused immediately."""

import numpy as np
import pytest

from imagegpt import ImageGPTPipeline
from imagegpt.jobs.sample import sample_many
from imagegpt.sampling import SamplingRules

TINY = ["--model", "./tiny"]


@pytest.mark.parametrize(
    "words",
    {
        "temperature of four colours": ["sample", *TINY, "--temperature", "1e39"],
        "temperature of infinity": ["complete", "cat.png", *TINY, "--temperature", "inf"],
        "top-k in floats": ["sample", *TINY, "--top-k", "1e20"],
        "top-k of 2^64": ["complete", "cat.png", *TINY, "--top-k", str(2**64)],
        "images in floats": ["sample", *TINY, "--num", "1e9"],
        "images": ["sample", *TINY, "--num", "1000000000"],
        "completions": ["complete", "cat.png", *TINY, "--num", "1000000000"],
        "singles": ["sample", *TINY, "--num", "1000000000", "--singles", "each"],
        "batch": ["sample", *TINY, "--batch-size", str(2**63)],
        "memory of nothing known": ["sample", *TINY, "--max-memory", "nan"],
        "memory without end": ["sample", *TINY, "--max-memory", "inf"],
        "size of a palette's images": ["palette", "fit", "digits", "--split", "test", "--size", "5000", "--out", "pal"],
        "size of encoded images": ["encode", "digits", "out", "--palette", "digits", "--size", "100000"],
        "colours": ["palette", "fit", "digits", "--split", "test", "--colors", "100000", "--out", "pal"],
        "seed of scikit-learn": ["palette", "fit", "digits", "--split", "test", "--seed", str(2**32), "--out", "pal"],
        "broken images": ["encode", "digits", "out", "--palette", "digits", "--max-broken", "nan"],
        "rank of adapters": ["finetune", "digits", "digits", "--out", "model", "--lora", "1e20"],
        "another rank": ["finetune", "digits", "digits", "--out", "model", "--lora", str(10**20)],
        "batches of a benchmark": ["bench", "./tiny", "--batch", f"1,{2**63}"],
        "passes": ["fill", "cat.png", "--mask", "cat.png", "--passes", str(2**63)],
    }.values(),
)
def test_numbers_out_of_range_are_one_sentence(run, workplace, words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert " is not a" in err, "the command did something before it noticed"
    assert sorted(path.name for path in workplace.iterdir()) == ["cat.png", "tiny"]


@pytest.mark.parametrize("key", ["training.batch_size", "model.lora_rank", "monitoring.samples", "data.num_workers"])
def test_numbers_in_recipes_are_limited(run, workplace, key):
    status, _, err = run("train", "digits", "--out", "model", "--set", f"{key}={2**63}")
    assert status == 2
    assert f"{key} is {2**63}: it must be an integer from " in err


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numpy_integers_are_accepted(tiny_folder, tmp_path, kind):
    pipe = ImageGPTPipeline.from_pretrained(tiny_folder)
    expected = pipe.sample(2, seed=3, top_k=4)
    drawn = pipe.sample(kind(2), seed=kind(3), batch_size=kind(1), top_k=kind(4))
    assert drawn == expected
    assert pipe.complete(drawn, rows=kind(1), num=kind(1), seed=kind(3)) == pipe.complete(drawn, rows=1, num=1, seed=3)
    rules = SamplingRules(temperature=np.float32(0.5))
    sample_many(pipe, kind(2), tmp_path / "run", seed=kind(3), batch_size=kind(2), rules=rules)
    assert sample_many(pipe, 2, tmp_path / "run", seed=3, rules=SamplingRules(temperature=0.5)).num_new == 0


@pytest.mark.parametrize("value", [True, np.True_])
def test_booleans_are_refused_as_numbers(tiny_folder, value):
    pipe = ImageGPTPipeline.from_pretrained(tiny_folder)
    for options in ({"num": value}, {"seed": value}, {"batch_size": value}, {"temperature": value}):
        (name,) = options
        with pytest.raises(ValueError, match=f"^{name} is True: it must be a"):
            pipe.sample(**options)
