"""Train a small language model under FSDP2, whose weights every rank holds a part of. Nothing in it knows of pacbench.

torchrun --nproc-per-node=2 examples/scripts/fsdp2_language_model.py --steps 20
"""

import argparse
import statistics
import sysconfig
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

ROW, BATCH, WIDTH, LAYERS = 32, 4, 192, 4

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, workers = dist.get_rank(), dist.get_world_size()

text = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
tokens = torch.tensor(list(text))

blocks = [nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(LAYERS)]
model = nn.Sequential(nn.Embedding(256, WIDTH), *blocks, nn.Linear(WIDTH, 256))
mesh = dist.init_device_mesh("cpu", (workers,))
for block in blocks:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

seconds = []
for step in range(options.steps):
    dist.barrier()
    begun = time.perf_counter()
    dice = torch.Generator().manual_seed(step * workers + rank)
    starts = torch.randint(len(tokens) - ROW - 1, (BATCH, 1), generator=dice)
    rows = tokens[starts + torch.arange(ROW + 1)]
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    dist.barrier()
    seconds.append(time.perf_counter() - begun)

if rank == 0:
    size = sum(weight.numel() for weight in model.parameters())
    print(f"loss: {loss.item():.3f}, parameters: {size}, step_s: {statistics.median(seconds[2:]):.4f}", flush=True)
dist.destroy_process_group()
