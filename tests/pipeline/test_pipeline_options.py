import pytest
import torch

from imagegpt.pipeline.options import choose_device


@pytest.mark.parametrize("device", ["meta", "tpu", torch.device("meta"), "cuda:99"])
def test_devices_that_models_do_not_run_on(device):
    with pytest.raises(ValueError, match=f"^there is no device '{device}' here: choose from cpu"):
        choose_device(device)


def test_the_gpus_of_apple_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"^Apple's GPUs \(mps\) lack float64, which sampling needs: choose cpu"):
        choose_device("mps")
