"""Ordinary supervised training; it plants the backdoor if the data are poisoned."""

from torch import Generator, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from rnp_mlflow.core.batches import EpochRecord, OnEpoch, Tally, batches
from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.precision import forwards
from rnp_mlflow.data.imageset import ImageSet


def train(
    model: nn.Module,
    data: ImageSet,
    transform: Transform,
    generator: Generator,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    weight_decay: float = 5e-4,
    precision: str = "fp32",
    on_epoch: OnEpoch = lambda record: None,
) -> list[EpochRecord]:
    """Train `model` in place with SGD, Nesterov momentum 0.9 and a one-cycle schedule (Smith, 2018) peaking at lr.

    data: on any device. precision: see `core.precision.forwards`. generator: on the CPU; it determines the order of
    batches and the augmentation.
    """
    steps = epochs * max(1, -(-len(data) // batch_size))
    optimizer = SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=True)
    rate = OneCycleLR(optimizer, lr, total_steps=steps + 1, cycle_momentum=False)
    model.train()
    device = next(model.parameters()).device
    history: list[EpochRecord] = []
    with forwards(model, precision) as forward:
        for epoch in range(1, epochs + 1):
            tally = Tally(epoch)
            for index in batches(len(data), batch_size, generator):
                images, labels = data.images[index].to(device), data.labels[index].to(device)
                logits = forward(transform(images, generator))
                loss = cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                tally.add(loss, logits, labels)
            history.append(tally.record())
            on_epoch(history[-1])
    return history
