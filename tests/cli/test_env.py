from importlib.metadata import version

from imagegpt.cli import env


def test_what_a_report_needs(run, monkeypatch):
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


def test_a_machine_that_lacks_things(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(env, "available_bytes", lambda: None)
    monkeypatch.setattr(env.os, "access", lambda *_: False)
    status, out, _ = run("env")
    assert status == 0
    assert "none, so that sampling and training run without kernels" in out
    assert "memory unknown" in out
    assert "which cannot be written to" in out
