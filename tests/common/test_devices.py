import pytest
import torch

from imagegpt.common.devices import choose_device


@pytest.mark.parametrize("device", ["meta", "tpu", torch.device("meta"), "cuda:99"])
def test_unusable_devices_are_refused(device):
    with pytest.raises(ValueError, match=f"^there is no device '{device}' here: choose from cpu"):
        choose_device(device)


def test_apple_gpus_are_refused():
    with pytest.raises(ValueError, match=r"^Apple's GPUs \(mps\) lack float64, which sampling needs: choose cpu"):
        choose_device("mps")
