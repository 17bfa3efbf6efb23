"""Parameters of the steps that make a suspect model: its data, its training, or where it comes from."""

from typing import Literal

from pydantic import Field

from rnp_mlflow.attacks import NAMES
from rnp_mlflow.config.values import (
    DATA,
    DATASETS,
    FILE,
    MACHINE,
    MODEL,
    PLACE,
    START,
    AbsPath,
    Channels,
    Count,
    MaybeName,
    Name,
    NameOrPath,
    Settings,
    Text,
    UpTo4096,
)
from rnp_mlflow.core.params import COMMON, CommonParams


class Common(Settings, CommonParams, frozen=True):
    """What every step takes."""

    device: Text = Field(
        None, json_schema_extra=MACHINE, description="cpu, cuda or cuda:N; auto takes CUDA if there is one"
    )
    threads: UpTo4096 = Field(
        None, json_schema_extra=MACHINE, description="CPU threads of torch; auto leaves torch's own choice"
    )
    store_timeout: float = Field(
        300,
        ge=0,
        le=1e6,
        json_schema_extra={"role": "machine"},
        description="seconds to wait for a tracking store that is busy, full or away while a step works",
    )


class Data(Common):
    """Which images, and how they are prepared."""

    data_dir: AbsPath = Field(
        None, json_schema_extra=PLACE, description="where the images are: a folder or an npz file; auto only for digits"
    )
    image_size: UpTo4096 = Field(
        None,
        json_schema_extra=COMMON | DATA,
        description="scale every image to this many pixels a side (images that are not square are squeezed); auto "
        "keeps their size, square or not, which must then be the same for all (GTSRB through torchvision: 32)",
    )
    train_size: Count = Field(
        None,
        json_schema_extra=COMMON | DATA,
        description="number of training images to use, drawn class by class; auto takes all",
    )
    test_size: Count = Field(
        None,
        json_schema_extra=COMMON | DATA,
        description="number of test images to use, drawn class by class; auto takes all",
    )
    mean: Channels = Field(
        None,
        json_schema_extra=COMMON | DATA,
        description="mean of each channel, separated by commas, for pixels scaled to 0 to 1 (not 0 to 255); auto takes "
        "the dataset's",
    )
    std: Channels = Field(
        None,
        json_schema_extra=COMMON | DATA,
        description="standard deviation of each channel, on the same scale as mean; auto takes the dataset's",
    )
    class_order: Literal["number", "text"] = Field(
        "number",
        json_schema_extra=COMMON | DATA,
        description="order of class folders whose names are all numbers: as numbers (BackdoorBench), or as text, as "
        "torchvision's ImageFolder sorts them (0, 1, 10, 11, 2)",
    )
    flip: Literal["auto", "yes", "no"] = Field(
        "auto",
        json_schema_extra=COMMON | DATA,
        description="whether a mirrored image keeps its label, so that mirrored images may be used; auto: yes for "
        "cifar10, cifar100, tiny and celeba, no for all others",
    )


class Attack(Data):
    """Train a backdoored model: the test subject."""

    dataset: Name = Field("digits", json_schema_extra=COMMON | DATA, description=", ".join(DATASETS))
    model: str = Field(
        "resnet18_narrow",
        json_schema_extra=COMMON | MODEL,
        description="an architecture of ours, any torchvision classifier, or timm/NAME",
    )
    width: UpTo4096 = Field(
        None,
        json_schema_extra=COMMON | MODEL,
        description="channels of the first stage; auto takes the architecture's own",
    )
    attack: str = Field(
        "badnets", json_schema_extra=COMMON | MODEL, description=", ".join(NAMES) + ", or none for a clean model"
    )
    poison_rate: float = Field(
        0.1, gt=0, lt=1, json_schema_extra=COMMON | MODEL, description="share of training images that get the trigger"
    )
    target: int = Field(0, ge=0, json_schema_extra=COMMON | MODEL, description="class that the trigger leads to")
    label_mode: Literal["all_to_one", "all_to_all"] = Field(
        "all_to_one",
        json_schema_extra=COMMON | MODEL,
        description="the trigger leads to target, or from each class to the next",
    )
    training_epochs: int = Field(5, ge=1, json_schema_extra=COMMON | MODEL, description="epochs of training")
    training_batch_size: int = Field(
        128, ge=2, json_schema_extra=MODEL, description="images per batch of training, at most"
    )
    training_lr: float = Field(
        0.1, gt=0, le=1e6, json_schema_extra=MODEL, description="peak learning rate of training (AdamW: a hundredth)"
    )
    weight_decay: float = Field(
        0.0005, ge=0, le=1e6, json_schema_extra=MODEL, description="weight decay of training (AdamW: times 100)"
    )
    optimizer: Literal["auto", "sgd", "adamw"] = Field(
        "auto",
        json_schema_extra=MODEL,
        description="of training; auto takes SGD for a network with BatchNorm, else AdamW with gradients clipped",
    )


class Import(Data):
    """Import a model that was trained elsewhere; nothing in its files is executed."""

    attack_result: AbsPath = Field(
        None, json_schema_extra=FILE, description="BackdoorBench's attack_result.pt, its triggered images beside it"
    )
    checkpoint: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="weights: safetensors, a torch state dict, pt2, the authors' .tar, or a model folder of ours",
    )
    model_uri: Text = Field(
        None,
        json_schema_extra=COMMON | START,
        description="an MLflow model or artifact: models:/NAME@ALIAS, runs:/RUN_ID/PATH",
    )
    model: Text = Field(
        None,
        json_schema_extra=COMMON | MODEL,
        description="its architecture: ours, torchvision's or timm/NAME; auto takes what the source names or the "
        "weights fit",
    )
    model_factory: Text = Field(
        None,
        json_schema_extra=COMMON | MODEL,
        description="package.module:function of your own that returns the model. It is EXECUTED, the one exception; "
        "later calls on this model need RNP_MODEL_FACTORY=package.module:function in the environment",
    )
    data: NameOrPath = Field(
        None,
        json_schema_extra=PLACE,
        description="the clean images: a folder, an npz file, or a dataset's name (its files in data_dir)",
    )
    dataset: MaybeName = Field(
        None,
        json_schema_extra=COMMON | DATA,
        description="dataset whose normalisation the model expects (cifar10, for example); auto takes the source's",
    )
    triggered: AbsPath = Field(
        None, json_schema_extra=FILE, description="triggered images for ASR and RA: folder of true classes, or npz"
    )
    target: Text = Field(None, json_schema_extra=COMMON | MODEL, description="their target class, by name or number")
    require_acc: float = Field(
        0.0,
        ge=0,
        le=1,
        json_schema_extra=COMMON | MODEL,
        description="refuse the model if its accuracy on the clean images is lower",
    )
