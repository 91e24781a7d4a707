"""`imagegpt bench`: its output and errors; no test asserts a time."""

import json

import pytest

from imagegpt.benchmarking import run as running
from imagegpt.benchmarking import timing

QUICK = ("--pixels", 2, "--repeats", 1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(timing.ReadBandwidth.__init__, "__defaults__", (1 << 20,))
    monkeypatch.setattr(running, "peak_bytes_in_subprocess", lambda *_: 12_300_000)
    monkeypatch.setattr(running, "_MIN_RUN_S", 0.0)


def test_the_table_and_the_notes(run, workplace):
    status, out, err = run("bench", "./tiny", *QUICK, "--batch", "1,2", "--out", "bench.json")
    assert (status, err) == (0, "")
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [
        *(("imagegpt float32", "1"), ("transformers float32", "1")),
        *(("imagegpt float32", "2"), ("transformers float32", "2")),
    ]
    assert [row[7].strip() for row in rows] == ["12 MB"] * 4
    assert "Only the first 2 of 16 pixels were sampled (--pixels 16)." in out
    assert "Both libraries produce the same greedy pixels." in out
    assert "the bandwidth column says little" in out
    record = json.loads((workplace / "bench.json").read_text())
    assert (record["benchmark"], record["settings"]["batches"], record["num_pixels"]) == ("bench", [1, 2], 2)
    for one, row in zip(record["measurements"], rows, strict=True):
        assert one["ms_per_pixel"] > 0
        assert row[2].strip() == f"{one['ms_per_pixel']:.3g}"
        assert row[8].strip() == ("" if one["speedup"] is None else f"{one['speedup']['median']:.2f}x")


def test_json_prints_what_out_appends(run, workplace):
    (workplace / "bench.json").write_text("before\n")
    options = ("--no-compare", "--precision", "bfloat16", "--json", "--out", "bench.json")
    status, out, err = run("bench", "./tiny", *QUICK, *options)
    assert (status, err) == (0, "")
    record = json.loads(out)
    assert [(one["library"], one["precision"]) for one in record["measurements"]] == [("imagegpt", "bfloat16")]
    before, line = (workplace / "bench.json").read_text().splitlines()
    assert before == "before"
    assert json.loads(line) == record


def test_without_comparison(run, workplace):
    status, out, _ = run("bench", "./tiny", *QUICK, "--no-compare", "--precision", "bfloat16")
    assert status == 0
    assert "imagegpt bfloat16" in out
    assert "transformers" not in out
    assert "greedy" not in out


def test_both_decoders(run, workplace):
    status, out, _ = run("bench", "./tiny", *QUICK, "--no-compare", "--decoder", "sequential,parallel")
    assert status == 0
    assert "│ imagegpt float32 parallel │" in out
    assert "Parallel, float32, batch 1: " in out
    assert "x as fast as sequential (" in out
    assert "Both decoders sampled the same pixels in float32." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no model 'nowhere'"),
        (
            ["./tiny", "--batch", "1,x"],
            "--batch is '1,x', and x is not an integer from 1 to 65,536 (images): give batch sizes",
        ),
        (
            ["./tiny", "--batch", "0"],
            "--batch is '0', and 0 is not an integer from 1 to 65,536 (images): give batch sizes",
        ),
        (["./tiny", "--pixels", "17"], "num_pixels is 17: this model's images have 16 pixels"),
        (["./tiny", "--pixels", "0"], "Invalid value for '--pixels'"),
        (["./tiny", "--precision", "float8"], "precisions contains 'float8': choose from float32, bfloat16, int8"),
        (["./tiny", "--decoder", "both"], "decoders contains 'both': choose from sequential, parallel"),
        (["./tiny", "--device", "gpu"], "Invalid value for '--device': there is no device 'gpu': give cpu, cuda or"),
        (["./tiny", "--out", "tiny"], "--out is tiny, a folder: give the name of a file"),
        (["./tiny", "--out", "no/x.json"], "there is no folder no: create it first"),
    ],
)
def test_invalid_input_is_refused_in_one_line(run, workplace, names_in, arguments, message):
    status, out, err = run("bench", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert names_in() == []
