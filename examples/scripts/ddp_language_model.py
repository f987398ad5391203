"""Train a small language model on the letters of Python's own poem: DDP, AdamW, accumulation, clipping.

    torchrun --nproc-per-node=2 examples/scripts/ddp_language_model.py --steps 60

Nothing in it knows of pacbench.
"""

import argparse
import codecs
import contextlib
import io

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

CONTEXT, WIDTH, BATCH, ACCUMULATED = 32, 64, 8, 3

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save", help="where rank 0 writes the trained weights")
options = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

with contextlib.redirect_stdout(io.StringIO()):
    import this
text = torch.tensor(list(codecs.decode(this.s, "rot13").encode()))


class LanguageModel(nn.Module):
    """A decoder of one block, byte by byte."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, 128)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        hidden = self.letters(tokens) + self.places(torch.arange(CONTEXT))
        return self.head(self.block(hidden, src_mask=mask, is_causal=True))


model = DistributedDataParallel(LanguageModel(), bucket_cap_mb=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
draws = torch.Generator().manual_seed(1 + rank)

for _step in range(options.steps):
    for part in range(ACCUMULATED):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=draws)
        windows = text[starts + torch.arange(CONTEXT + 1)]
        with model.no_sync() if part < ACCUMULATED - 1 else contextlib.nullcontext():
            scores = model(windows[:, :-1])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
            (loss / ACCUMULATED).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()

if rank == 0:
    print(f"loss: {loss.item():.3f}", flush=True)
    if options.save:
        torch.save(model.module.state_dict(), options.save)
dist.destroy_process_group()
