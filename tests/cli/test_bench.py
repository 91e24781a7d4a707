"""`imagegpt bench`: what it prints and refuses; no time is asserted."""

import json

import pytest

from imagegpt.benchmarking import run as running
from imagegpt.benchmarking import timing

QUICK = ("--pixels", 2, "--repeats", 1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(timing.MemoryReader.__init__, "__defaults__", (1 << 20,))
    monkeypatch.setattr(running, "bytes_in_a_process", lambda *_: 12_300_000)
    monkeypatch.setattr(running, "_LEAST_S", 0.0)


def test_a_table_and_a_line_of_json(run, workplace):
    status, out, err = run("bench", "./tiny", *QUICK, "--batch", "1,2", "--json", "bench.json")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [
        *(("imagegpt float32", "1"), ("transformers float32", "1")),
        *(("imagegpt float32", "2"), ("transformers float32", "2")),
    ]
    assert [row[7].strip() for row in rows] == ["12 MB"] * 4
    assert "Drawn were the first 2 of 16 pixels (--pixels 16)." in out
    assert "Both make the same likeliest pixels." in out
    assert "its share says little" in out
    facts = json.loads(lines[-1])
    assert (workplace / "bench.json").read_text() == lines[-1] + "\n"
    assert (facts["benchmark"], facts["settings"]["batches"], facts["num_pixels"]) == ("bench", [1, 2], 2)
    for one, row in zip(facts["measurements"], rows, strict=True):
        assert one["ms_per_pixel"] > 0
        assert row[2].strip() == f"{one['ms_per_pixel']:.3g}"
        assert row[8].strip() == ("" if one["speedup"] is None else f"{one['speedup']['median']:.2f}x")


def test_alone_in_one_precision(run, workplace):
    (workplace / "bench.json").write_text("before\n")
    status, out, _ = run("bench", "./tiny", *QUICK, "--no-compare", "--precision", "bfloat16", "--json", "bench.json")
    assert status == 0
    assert "imagegpt bfloat16" in out
    assert "transformers float32" not in out
    assert "likeliest" not in out
    assert "not compared" not in out
    assert (workplace / "bench.json").read_text() == f"before\n{out.splitlines()[-1]}\n"


def test_both_decoders(run, workplace):
    status, out, _ = run("bench", "./tiny", *QUICK, "--no-compare", "--decoder", "sequential,parallel")
    assert status == 0
    assert "│ imagegpt float32 parallel │" in out
    assert "Parallel, float32, 1 image: " in out
    assert "x as fast as one by one (" in out
    assert "Both decoders drew the same pixels in float32." in out
    assert [one["decoder"] for one in json.loads(out.splitlines()[-1])["measurements"]] == ["sequential", "parallel"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no model 'nowhere'"),
        (
            ["./tiny", "--batch", "1,x"],
            "--batch is '1,x', and x is not a whole number from 1 to 65,536 (images): give numbers of images",
        ),
        (
            ["./tiny", "--batch", "0"],
            "--batch is '0', and 0 is not a whole number from 1 to 65,536 (images): give numbers of images",
        ),
        (["./tiny", "--pixels", "17"], "num_pixels is 17: this model's images have 16 pixels"),
        (["./tiny", "--pixels", "0"], "Invalid value for '--pixels'"),
        (["./tiny", "--precision", "float8"], "precisions has 'float8': choose from float32, bfloat16, int8"),
        (["./tiny", "--decoder", "both"], "decoders has 'both': choose from sequential, parallel"),
        (["./tiny", "--device", "gpu"], "Invalid value for '--device': there is no device 'gpu': give cpu, cuda or"),
        (["./tiny", "--json", "tiny"], "--json is tiny, a folder: give the name of a file"),
        (["./tiny", "--json", "no/x.json"], "there is no folder no: make it first"),
    ],
)
def test_bad_input_is_one_sentence(run, workplace, names_in, arguments, message):
    status, out, err = run("bench", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert names_in() == []
