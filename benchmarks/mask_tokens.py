"""
Speed-up of an encoder without mask tokens (Table 1c and Table 2 of the paper).

    python -m benchmarks.mask_tokens [--model_size large] [--batch_size 4] [--rounds 5] [--precisions fp32 bf16]

The baseline is the step (forward, backward, AdamW) of a model whose encoder sees mask tokens at the removed patches,
with a decoder of 8 blocks. This package encodes only the visible patches, with a decoder of 8 blocks and of 1 block.
The rows alternate in one process. "FLOP ceiling" is the ratio of FLOPs: the speed-up if FLOPs alone cost time. For
ViT-L it is 3.23 and 4.15, and the paper reports 2.8 and 3.7 on TPUs. bf16 is autocast.
"""

import argparse
import statistics

import torch
from torch import Tensor, nn

from benchmarks.timing import PRECISIONS, alternate, autocast, best_device, machine, median_ratio, table
from configuration_mae import MAEConfig
from mae.training.flops import forward_flops
from modeling_mae import MAEForPreTraining, num_visible_patches


BASELINE, OURS, ONE_BLOCK = "mask tokens in the encoder, 8 blocks", "this package, 8 blocks", "this package, 1 block"


class MaskTokensInEncoder(nn.Module):
    """The model with mask tokens in its encoder, as in BEiT. It shares the weights of a [`MAEForPreTraining`]."""

    def __init__(self, model: MAEForPreTraining):
        super().__init__()
        self.model = model
        self.mask_token = nn.Parameter(torch.randn(1, 1, model.config.hidden_size) * 0.02)

    def forward(self, pixel_values: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """
        Loss and logits `(B, L, P)` for images `(B, C, H, W)` and noise `(B, L)`. The target is pixels, not normalised.
        """
        config, encoder, decoder = self.model.config, self.model.mae, self.model.decoder
        num_visible = num_visible_patches(config.num_patches, config.mask_ratio)
        removed = noise.argsort(dim=1).argsort(dim=1) >= num_visible

        patches = encoder.patch_embed.proj(pixel_values).flatten(2).transpose(1, 2)
        patches = torch.where(removed[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = torch.cat([encoder.cls_token.to(patches.dtype).expand(len(patches), -1, -1), patches], dim=1)
        latent = encoder.norm(_run(encoder.blocks, tokens + encoder.pos_embed))

        tokens = decoder.embed(latent) + decoder.pos_embed
        logits = decoder.pred(decoder.norm(_run(decoder.blocks, tokens)))[:, 1:]
        errors = (logits.float() - self.model.patchify(pixel_values)).square().mean(dim=-1)
        return (errors * removed).sum() / removed.sum(), logits


def _run(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    for block in blocks:
        outputs = block(tokens)
        tokens = outputs if isinstance(outputs, Tensor) else outputs[0]
    return tokens


def configurations(model_size: str, image_size: int) -> dict[str, MAEConfig]:
    """The configuration of each row."""
    overrides = {BASELINE: {}, OURS: {}, ONE_BLOCK: {"decoder_num_hidden_layers": 1}}
    size = {"size": model_size, "image_size": image_size}
    return {name: MAEConfig.from_size(**size, **fields) for name, fields in overrides.items()}


def ceilings(configs: dict[str, MAEConfig]) -> dict[str, float]:
    """FLOPs of the baseline, which encodes and predicts all patches, divided by those of each row."""
    num_patches = configs[BASELINE].num_patches
    baseline = forward_flops(configs[BASELINE], num_visible=num_patches, num_predicted=num_patches)
    return {name: 1.0 if name == BASELINE else baseline / forward_flops(config) for name, config in configs.items()}


def make_steps(configs: dict[str, MAEConfig], batch_size: int, precision: str, device: torch.device) -> dict:
    """
    One training step for each row.

    All share an encoder and an optimizer, which skips what has no gradient. Memory then holds the weights and moments
    of a single large encoder.
    """
    model, one_block = MAEForPreTraining(configs[OURS]), MAEForPreTraining(configs[ONE_BLOCK])
    one_block.mae = model.mae
    baseline = MaskTokensInEncoder(model)
    every = nn.ModuleList([baseline, one_block]).to(device).train()
    trained = [parameter for parameter in every.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    config = configs[OURS]
    images = torch.randn(batch_size, config.num_channels, config.image_size, config.image_size, device=device)
    noise = torch.rand(batch_size, config.num_patches, device=device)

    def step(forward) -> None:
        with autocast(precision, device):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        BASELINE: lambda: step(lambda: baseline(images, noise)[0]),
        OURS: lambda: step(lambda: model(images, noise=noise, return_logits=False).loss),
        ONE_BLOCK: lambda: step(lambda: one_block(images, noise=noise, return_logits=False).loss),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", default="large", help="tiny, small, base, large or huge (default: large)")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels (default: 224)")
    parser.add_argument("--batch_size", type=int, default=4, help="images a step (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each row (default: 5)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="(default: both)")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    configs = configurations(arguments.model_size, arguments.image_size)
    limits = ceilings(configs)
    print(f"{machine()}\nViT-{arguments.model_size}, {arguments.image_size} pixels, batch {arguments.batch_size}\n")
    rows = []
    for precision in arguments.precisions:
        steps = make_steps(configs, arguments.batch_size, precision, best_device())
        seconds = alternate(steps, arguments.rounds)
        for name, times in seconds.items():
            speed_up = median_ratio(seconds[BASELINE], times)
            median = f"{statistics.median(times):.3f} s"
            rows.append([precision, name, median, f"{speed_up:.2f}", f"{limits[name]:.2f}"])
    print(table(["precision", "encoder and decoder", "step", "speed-up", "FLOP ceiling"], rows), flush=True)


if __name__ == "__main__":
    main()
