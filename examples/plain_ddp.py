"""Train on handwritten digits with PacTrain in a plain DDP script, without the benchmark suite around it.

    torchrun --nproc-per-node=2 examples/plain_ddp.py

What differs from any other DDP script is marked.
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import baselines  # <- here

dist.init_process_group("gloo")
rank, workers = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1)
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, test = order[:1437], order[1437:]

model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

method = baselines.get("pactrain")  # <- and here
state = method.State(density=0.2, values="ternary")
baselines.register(model, state, optimizer=optimizer)

for _epoch in range(10):
    for batch in train[torch.randperm(len(train))].split(32 * workers):
        mine = batch[rank::workers]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[mine]), labels[mine]).backward()
        optimizer.step()

if rank == 0:
    with torch.no_grad():
        accuracy = (model.module(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"accuracy {100 * accuracy:.1f} %")
dist.destroy_process_group()
