"""What commands print about the precision they chose, on mocked processors."""

import pytest
import torch

PLAIN, ABLE = {"avx512_f": True}, {"avx512_f": True, "avx512_bf16": True}
FLOAT32 = "precision: float32 (this processor has no instructions for bfloat16)"
BFLOAT16 = "precision: bfloat16 (this processor has instructions for bfloat16)"
TINY = ["model.n_layer=1", "model.n_embd=8", "model.n_head=1", "training.num_steps=2", "training.warmup_steps=1"]
TINY += ["monitoring.samples=0", "monitoring.validation_images=8"]
TINY += ["training.attention=sdpa"]  # ours has no kernels for the processors that are only pretended


def changes(*more):
    return [word for change in (*TINY, *more) for word in ("--set", change)]


@pytest.mark.parametrize(("abilities", "line"), [(PLAIN, FLOAT32), (ABLE, BFLOAT16)])
def test_train_prints_the_precision(abilities, line, run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    words = ["train", "digits", "--out", tmp_path / "m", *changes("training.precision=auto")]
    status, _, err = run(*words)
    assert status == 0, err
    assert err.splitlines().count(line) == 1
    chosen = line.split()[1]
    assert f" on a CPU in {chosen} (torch " in " ".join((tmp_path / "m" / "README.md").read_text().split())
    assert f"precision: {chosen} (as before" in run(*words)[2]


def test_train_prints_a_requested_precision(run, tmp_path):
    _, _, err = run("train", "digits", "--out", tmp_path / "m", *changes())
    assert "precision: float32 (as requested)" in err.splitlines()


def test_finetune_prints_the_precision(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: PLAIN)
    words = changes("training.batch_size=4", "training.precision=auto")[6:]  # the shape is the model's
    status, _, err = run("finetune", "digits", "digits", "--out", tmp_path / "m", *words)
    assert status == 0, err
    assert err.splitlines().count(FLOAT32) == 1


def test_learning_rate_search_prints_the_precision(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: PLAIN)
    words = ["--find-lr", "--find-lr-steps", 2, *changes("training.precision=auto")]
    assert FLOAT32 in run("train", "digits", "--out", tmp_path / "s", *words)[2].splitlines()


@pytest.mark.parametrize(("abilities", "line"), [(PLAIN, FLOAT32), (ABLE, BFLOAT16)])
def test_sample_prints_the_precision(abilities, line, run, workplace, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    commands = (["sample", "--num", 2], ["complete", "cat.png", "--num", 1])
    for command in commands:
        status, _, err = run(*command, "--model", "./tiny", "--precision", "auto", "--out", "auto.png", "--force")
        assert status == 0, err
        assert err.splitlines().count(line) == 1
        assert "precision" not in run(*command, "--model", "./tiny", "--out", "default.png", "--force")[2]


def test_only_one_of_several_processes_prints(run, workplace, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: PLAIN)
    words = ["sample", "--model", "./tiny", "--num", 2, "--precision", "auto", "--out", "many"]
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "precision" not in run(*words)[2]
    monkeypatch.setenv("RANK", "0")
    assert FLOAT32 in run(*words)[2].splitlines()


def test_a_folder_of_samples_resumes_only_in_its_precision(run, workplace, monkeypatch):
    """On another machine "auto" means something else: images of two precisions in a folder are refused."""
    words = ["sample", "--model", "./tiny", "--precision", "auto", "--out", "many/"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: PLAIN)
    status, _, err = run(*words, "--num", 2)
    assert status == 0, err
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ABLE)
    status, _, err = run(*words, "--num", 4)
    assert status == 2
    assert "precision (float32, not bfloat16)" in " ".join(err.split())
