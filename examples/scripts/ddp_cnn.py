"""Train a small CNN on handwritten digits under DDP. Nothing in it knows of pacbench.

torchrun --nproc-per-node=2 examples/scripts/ddp_cnn.py --steps 60
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save", help="where rank 0 writes the trained weights")
options = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, workers = dist.get_rank(), dist.get_world_size()

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10)),
)
model = DistributedDataParallel(model, bucket_cap_mb=0.1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

for step in range(options.steps):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))
    mine = order[rank : 32 * workers : workers]
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
    loss.backward()
    optimizer.step()

model.eval()
with torch.no_grad():
    accuracy = (model(images).argmax(1) == labels).float().mean()
if rank == 0:
    print(f"acc: {accuracy:.3f}", flush=True)
    if options.save:
        torch.save(model.module.state_dict(), options.save)
dist.destroy_process_group()
