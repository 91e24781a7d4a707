"""Tensor parallelism: two processes with half of the heads and MLPs each match one process."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling

WORKER = textwrap.dedent(
    """
    import sys
    import torch
    import torch.distributed as dist
    from transformers.distributed import DistributedConfig
    from imagegpt import ImageGPTForCausalImageModeling

    folder, ids, expected, grads, greedy = sys.argv[1], *torch.load(sys.argv[1] + "/expected.pt")
    model = ImageGPTForCausalImageModeling.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2))
    model.eval()
    attention, mlp = model.transformer.h[0].attn, model.transformer.h[0].mlp
    assert attention.c_attn.weight.to_local().shape == (32, 48), attention.c_attn.weight.to_local().shape
    assert attention.c_proj.weight.to_local().shape == (16, 32)
    assert mlp.c_fc.weight.to_local().shape == (32, 64)
    assert mlp.c_proj.weight.to_local().shape == (64, 32)
    output = model(ids, labels=ids)
    torch.testing.assert_close(output.logits, expected, atol=2e-6, rtol=1e-5)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(gradient, grads[name], atol=2e-6, rtol=1e-4)
    assert torch.equal(model.generate(), greedy)
    dist.destroy_process_group()
    """
)


@pytest.mark.slow
def test_two_processes_match_one(tmp_path):
    torch.manual_seed(0)
    config = ImageGPTConfig(
        vocab_size=17, n_positions=16, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = ImageGPTForCausalImageModeling(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and gains too
    model.save_pretrained(tmp_path)
    ids = torch.randint(16, (2, 16))
    output = model(ids, labels=ids)
    output.loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save((ids, output.logits.detach(), grads, model.generate()), tmp_path / "expected.pt")

    (tmp_path / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "worker.py",
            str(tmp_path),
        ],
        cwd=tmp_path,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
