"""Train a network on handwritten digits by Hugging Face's Accelerate. Nothing in it knows of pacbench.

accelerate launch --cpu --num_processes 2 examples/scripts/accelerate_digits.py --steps 60
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

set_seed(0)
accelerator = Accelerator(cpu=True)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)
loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=32, shuffle=True, drop_last=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

done = 0
while done < options.steps:
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        done += 1
        if done == options.steps:
            break
accelerator.print(f"loss: {loss.item():.4f}")
accelerator.end_training()
