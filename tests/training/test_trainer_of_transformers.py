"""Our models are transformers models: its own Trainer trains them too."""

import math

import torch
from transformers import Trainer, TrainingArguments

from helpers import tiny_config
from imagegpt import ImageGPTForCausalImageModeling

STRIPES = (torch.arange(16).repeat(24, 1) + torch.arange(24)[:, None]) % 16


def test_the_loss_falls(tmp_path):
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(tiny_config(init_scheme="openai"))
    whole = torch.cat([torch.full((24, 1), 16), STRIPES[:, :-1]], dim=1)  # sos, then all pixels but the last
    images = [{"input_ids": ids, "labels": ids} for ids in whole]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=images)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 40
    assert abs(losses[0] - math.log(16)) < 1e-3
    assert losses[-1] < 0.6 * losses[0]
