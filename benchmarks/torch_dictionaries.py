"""BatchTopK dictionaries in the trainers of dictionary_learning and SAELens, step by step."""

from __future__ import annotations

from typing import Any

import torch


class Learned:
    """dictionary_learning's."""

    def __init__(
        self, d: int, width: int, k: int, seed: int, steps: int, batch: int, rate: float,
        warmup: int, decay: int,
    ) -> None:  # fmt: skip
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

        self.own = BatchTopKTrainer(
            steps=steps, activation_dim=d, dict_size=width, k=k, layer=0, lm_name="", lr=rate,
            warmup_steps=warmup, decay_start=steps - decay, seed=seed, device="cpu",
        )  # fmt: skip
        self.done = 0

    def step(self, x: Any) -> None:
        self.own.update(self.done, x)
        self.done += 1

    def reconstruct(self, x: Any) -> Any:
        return self.own.ae.decode(self.own.ae.encode(x, use_threshold=False))


class Lens:
    """SAELens's."""

    def __init__(
        self, d: int, width: int, k: int, seed: int, steps: int, batch: int, rate: float,
        warmup: int, decay: int,
    ) -> None:  # fmt: skip
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(seed)
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d, d_sae=width, k=float(k)))
        config = SAETrainerConfig(
            total_training_samples=steps * batch, train_batch_size_samples=batch, lr=rate,
            lr_end=rate, lr_warm_up_steps=warmup, lr_decay_steps=decay,
        )  # fmt: skip
        self.own = SAETrainer(config, sae, iter(()))

    def step(self, x: Any) -> None:
        self.own.step(x)
        self.own.n_training_steps += 1

    def reconstruct(self, x: Any) -> Any:
        return self.own.sae.decode(self.own.sae.encode(x))


KINDS = {"dictionary_learning": Learned, "sae_lens": Lens}
