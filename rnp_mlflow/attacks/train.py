"""Ordinary supervised training, which plants the backdoor when the data are poisoned."""

from torch import Generator, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from rnp_mlflow.core.batches import EpochCallback, EpochMeter, EpochRecord, batches, ignore_epoch
from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.precision import forward_fn
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
    precision: Precision = "fp32",
    on_epoch: EpochCallback = ignore_epoch,
) -> list[EpochRecord]:
    """Train `model` in place: SGD, Nesterov momentum 0.9, one-cycle rate (Smith, 2018) peaking at lr.

    data: on any device. precision: as `core.precision.forward_fn` takes it. generator: a CPU one, the source
    of batch order and augmentation.
    """
    steps = epochs * max(1, -(-len(data) // batch_size))
    optimizer = SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=True)
    rate = OneCycleLR(optimizer, lr, total_steps=steps + 1, cycle_momentum=False)
    model.train()
    device = next(model.parameters()).device
    history: list[EpochRecord] = []
    with forward_fn(model, precision) as forward:
        for epoch in range(1, epochs + 1):
            meter = EpochMeter(epoch)
            for index in batches(len(data), batch_size, generator):
                images, labels = data.images[index].to(device), data.labels[index].to(device)
                logits = forward(transform(images, generator))
                loss = cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                meter.add(loss, logits, labels)
            history.append(meter.record())
            on_epoch(history[-1])
    return history
