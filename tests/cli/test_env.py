"""`imagegpt env`: versions, hardware and settings, without secrets."""

import json
from importlib.metadata import version

from imagegpt.cli import env


def test_env_prints_versions_hardware_and_settings(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    status, out, err = run("env")
    assert (status, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["imagegpt"].startswith("0.1.0, in ")
    assert facts["torch"].startswith(version("torch"))
    assert facts["transformers"].strip() == version("transformers")
    assert {"Python", "system", "cores", "compiler", "cache", "output", "datasets"} <= facts.keys()
    assert "pytest" not in facts
    assert facts["OMP_NUM_THREADS"].strip() == "3"
    assert facts["HF_TOKEN"].strip() == "set"
    assert "secret" not in out


def test_env_as_json(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    status, out, err = run("env", "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["libraries"]["transformers"] == version("transformers")
    assert facts["variables"]["HF_TOKEN"] == "set"
    assert facts["available_memory_bytes"] > 0
    assert facts["threads"] >= 1


def test_env_without_compiler_cache_and_known_memory(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(env, "available_memory", lambda: None)
    monkeypatch.setattr(env.os, "access", lambda *_: False)
    status, out, _ = run("env")
    assert status == 0
    assert "none: sampling and training run without kernels" in out
    assert "memory unknown" in out
    assert "not writable" in out
