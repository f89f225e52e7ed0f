"""The sizes of vq_small and how it is trained. Each field is an option of the command `train`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Sizes of the network and settings of its training."""

    channels: int = 64
    """Number of channels at the largest resolution."""
    blocks: int = 2
    """Number of residual blocks per resolution."""
    width: int = 16
    """Width Z of a code."""
    decoder_blocks: int = 0
    """Number of residual blocks per resolution of the decoder. 0: as many as `blocks`."""
    normalised: bool = False
    """Whether the encoder's rows and the codes have unit length."""
    epochs: int = 8
    """Length of training in epochs."""
    batch_size: int = 64
    """Batch size in images."""
    lr: float = 1e-3
    """Peak learning rate. It rises over the first 2 % of training, then falls along a cosine."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    perceptual: float = 0.1
    """Weight of the perceptual loss."""
    perceptual_part: float = 0.25
    """Share of each batch that goes through VGG16, which costs more than the tokenizer."""
    commitment: float = 0.25
    """Weight of the commitment loss, which keeps the encoder's rows near their codes."""
    adversarial: float = 0.0
    """Length of the adversarial gradient at the decoder's last layer, as a share of that of the other \
losses there. 0: there is no discriminator."""
    adversarial_from: float = 0.3
    """Fraction of training from which the discriminator learns, and the adversarial gradient counts."""
    discriminator_channels: int = 64
    """Number of channels of the discriminator's first layer."""
    discriminator_lr: float = 5e-4
    """Peak learning rate of the discriminator. It falls along the same cosine."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights, which is then what is stored. 0: the weights \
themselves are stored."""
    codebook_decay: float = 0.99
    """Decay of the codebook's moving averages, per step."""
    dead_below: float = 0.05
    """Share of an equal share of the rows. A code whose moving count falls below it is dead."""
    rebirth_until: float = 0.8
    """Fraction of training in which dead codes are replaced. Afterwards the codebook settles."""
    precision: str = "bf16"
    """Precision of the networks under autocast, bf16 or fp32."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, and what replaces dead codes."""
