"""Grids without a store: the product, the graph of steps and its keys, and the order in which steps are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rnp_mlflow.errors import ConfigError
from rnp_mlflow.grid import graph, on_ray, spec
from rnp_mlflow.grid.drive import ATTEMPTS, Drive
from rnp_mlflow.grid.executors import Outcome, Serial, Task
from rnp_mlflow.grid.graph import Graph, Node
from rnp_mlflow.grid.spec import Resources, Spec
from rnp_mlflow.steps import grid_cells, grid_table

FACTS = {"code": "c"}


def build(asked: Spec, facts: Mapping[str, str] = FACTS) -> Graph:
    return grid_cells.build([grid_cells.parts(each, asked) for each in spec.cells(asked)], facts)


def count(found: Graph) -> dict[str, int]:
    steps = [node.step for node in found.nodes.values()]
    return {step: steps.count(step) for step in dict.fromkeys(steps)}


def test_what_cells_share_is_one_step_of_the_graph() -> None:
    """The issue's example: 7 attacks × 2 models × 3 seeds × 20 prune settings."""
    attacks = ["badnets", "blended", "sig", "wanet", "bpp", "trojannn", "input_aware"]
    axes: dict[str, list[Any]] = {"attack": attacks, "model": ["preactresnet18", "vgg19_bn"], "seed": [0, 1, 2],
            "pruning_max": [round(0.02 * k, 2) for k in range(1, 21)]}  # fmt: skip
    found = build(Spec(axes=axes))
    assert count(found) == {"attack": 42, "unlearn": 42, "recover": 42, "prune": 840}
    assert len(found.cells) == 840
    assert len(found.missing([])) == 966
    recovered = [key for key, node in found.nodes.items() if node.step == "recover"]
    assert {node.step for node in found.missing(recovered)} == {"prune"}, (
        "what is before a step that is there is not made"
    )
    assert found.missing(found.cells) == []


def test_a_key_holds_all_that_decides_a_step_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    here, there = str(tmp_path), str(tmp_path / "a")

    def key(step: str = "prune", content: str = "x", **settings: Any) -> str:
        facts = FACTS | {here: content, there: content}
        return next(node.key for node in build(Spec(settings=settings), facts).nodes.values() if node.step == step)

    plain = key()
    assert key() == plain
    for changed in ({"seed": 1}, {"attack": "sig"}, {"alpha": 0.3}, {"pruning_max": 0.8}, {"threads": 2}):
        assert key(**changed) != plain
    assert key("attack", alpha=0.3) == key("attack"), "a later step does not decide an earlier one"
    assert key(data_dir=here) == key(data_dir=there), "not the place of the images, but what is in it"
    assert key(data_dir=here, content="y") != key(data_dir=here)
    assert key(preset="default") == plain
    assert key(preset="reference") != plain
    assert key("attack", preset="reference") == key("attack")
    assert (
        graph.build([[graph.Step("attack", {}, {})]], "1").cells
        != graph.build([[graph.Step("attack", {}, {})]], "2").cells
    )


def test_a_model_that_was_imported_or_named_takes_the_place_of_the_attack(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    models = [{}, {"checkpoint": str(file), "data": str(tmp_path)}]
    asked = Spec(settings={"attack": "sig"}, axes={"import": models, "seed": [0, 1]})
    found = build(asked, FACTS | {str(file): "f", str(tmp_path): "d"})
    assert count(found) == {"attack": 2, "unlearn": 4, "recover": 4, "prune": 4, "import": 1}
    chains = [[node.step for node in found.path(key)] for key in found.cells]
    assert chains[0][0] == "attack"
    assert chains[-1][0] == "import"
    unlearned = next(node for node in found.path(found.cells[-1]) if node.step == "unlearn")
    assert "attack" not in unlearned.values, "it would contradict the imported model"
    apart = build(Spec(steps={"attack": {"seed": 7}}, axes={"seed": [0, 1]}))
    assert count(apart) == {"attack": 1, "unlearn": 2, "recover": 2, "prune": 2}
    named = build(Spec(axes={"model_run_id": ["r1", "r2"], "pruning_max": [0.5, 0.9]}))
    assert count(named) == {"unlearn": 2, "recover": 2, "prune": 4}
    assert count(build(Spec(step="attack", axes={"seed": [0, 1]}))) == {"attack": 2}
    masked = build(Spec(settings={"mask_file": str(file)}), FACTS | {str(file): "f"})
    assert count(masked) == {"attack": 1, "prune": 1}


def test_paths_are_handed_on_as_absolute_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Spec(settings={"data_dir": "images", "dataset": "folder"})
    chain = grid_cells.parts(spec.cells(asked)[0], asked)
    assert [part.values["data_dir"] for part in chain] == [str(tmp_path / "images")] * 4
    assert [part.places for part in chain] == [[str(tmp_path / "images")], [], [], []]


def test_the_product_leaves_out_and_keeps_what_the_rules_say(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text(
        """
        step = "prune"
        [settings]
        width = 8
        [axes]
        attack = ["badnets", "sig", "none"]
        seed = [0, 1]
        defence = [{preset = "reference", holdout_crops = 5}, {}]
        [[exclude]]
        attack = ["sig", "none"]
        seed = 1
        [[only]]
        preset = "reference"
        """
    )
    found = spec.cells(spec.read(file))
    assert [(one["attack"], one["seed"]) for one in found] == [("badnets", 0), ("badnets", 1), ("sig", 0), ("none", 0)]
    assert all(one["width"] == 8 and one["holdout_crops"] == 5 for one in found)
    assert grid_cells.columns(found) == ["attack", "seed"]
    lists = spec.with_lists(spec.read(file), {"seed": "3", "attack": "badnets,sig", "schedule": "10,20"})
    assert lists.axes["attack"] == ["badnets", "sig"]
    assert lists.settings == {"width": 8, "seed": 3, "schedule": "10,20"}
    assert spec.cells(Spec()) == [{}], "a grid without axes is one cell"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes = 3", "axes has to be a table"),
        ("[axes]\nseed = []", "seed has no values"),
        ("[axes]\nseed = 3", "seed has no values"),
        ("[axes]\nsede = [1]", "unknown parameter sede"),
        ("[axes]\nd = [{colour = 1}]", "unknown parameter colour"),
        ("[axes]\nimport = [{colour = 1}]", "unknown parameter colour"),
        ("[settings]\ncolour = 1", "settings: unknown parameter colour"),
        ("[axes]\nseed = [0]\n[[exclude]]\nseed = 7", "exclude: no cell has seed=7"),
        ("[axes]\nseed = [0]\n[[only]]\nseed = 7", "only: no cell has seed=7"),
        ("[axes]\nseed = [0]\n[[exclude]]\ncolour = 7", "unknown parameter colour"),
        ("[axes]\nseed = [0]\n[[exclude]]\nseed = 0", "the grid is empty"),
        ("exclude = [1]", "write [[exclude]]"),
        ("step = 'main'", "step=main"),
        ("[axes]\nthreads = [1, 2]", "threads"),
        ("[resources]\nthreads = 0", "threads=0"),
        ("[resources]\ncores = 2", "cores is unknown"),
        ("[resources.attack]\ngpus = 'all'", "gpus=all"),
        ("[grid]\nseed = 1", "grid is unknown"),
        ("[steps.attack]\ncolour = 1", "steps.attack: unknown parameter colour"),
        ("[steps.report]\nseed = 1", "steps: unknown parameter report"),
        ("seed = [", "spec="),
        ("[axes]\nseed = [-1]", "seed=-1"),
        ("[axes]\nseed = [" + ", ".join(map(str, range(400))) + "]\ntarget = [" + ", ".join(map(str, range(400))) + "]",
         "160,000 cells"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_spec_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        build(spec.read(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Told:
    """Notes what a drive says."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str | None]] = []
        self.losses: list[int] = []

    def began(self, node: Node) -> None:
        pass

    def ended(self, node: Node, outcome: Outcome) -> None:
        self.ends.append((node.step, outcome.run_id))

    def lost(self, task: Task, reason: str) -> None:
        self.losses.append(task.attempt)


class Body:
    """A step that makes nothing. failing, dying: keys of steps that are impossible, or lost so many times."""

    def __init__(self, failing: Mapping[str, str], dying: Mapping[str, int]):
        self.failing, self.dying = failing, dying
        self.tasks: list[Task] = []

    def __call__(self, task: Task) -> Outcome:
        self.tasks.append(task)
        if task.attempt <= self.dying.get(task.key, 0):
            return Outcome(reason="node died", lost=True)
        if task.key in self.failing:
            return Outcome(reason=self.failing[task.key])
        return Outcome(f"run-{task.key[:8]}", made=True)


def drive(found: Graph, body: Body, **known: Mapping[str, str]) -> tuple[Drive, Told]:
    def task(node: Node, upstream: str | None, attempt: int) -> Task:
        return Task(node.key, node.step, node.values, upstream, "g", "0", "", attempt)

    told = Told()
    resources = dict.fromkeys(("attack", "unlearn", "recover", "prune"), Resources())
    made = Drive(found, Serial(body), told, resources=resources, task=task,
                 done=known.get("done", {}), failed=known.get("failed", {}))  # fmt: skip
    made.run()
    return made, told


def test_each_step_is_made_once_after_the_one_it_starts_from_and_cells_end_early() -> None:
    found = build(Spec(axes={"seed": [0, 1], "pruning_max": [0.5, 0.9]}))
    body = Body({}, {})
    made, told = drive(found, body)
    assert [step for step, _ in told.ends] == ["attack", "unlearn", "recover", "prune", "prune"] * 2
    assert made.done.keys() == found.nodes.keys()
    for task in body.tasks:
        before = found.nodes[task.key].before
        assert task.upstream == (f"run-{before[:8]}" if before else None)


def test_an_impossible_step_fails_alone_with_what_starts_from_it() -> None:
    found = build(Spec(axes={"seed": [0, 1], "pruning_max": [0.5, 0.9]}))
    bad = next(key for key, node in found.nodes.items() if node.step == "unlearn")
    body = Body({bad: "no such thing"}, {})
    made, _ = drive(found, body)
    assert len(body.tasks) == 2 + 5, "bad input is not tried again"
    assert len(made.done) == 1 + 5
    assert made.failed[bad] == "no such thing"
    assert {reason for key, reason in made.failed.items() if key != bad} == {
        "starts from a step that failed: no such thing"
    }
    again, _ = drive(found, Body({}, {}), done=made.done, failed={bad: "no such thing"})
    assert again.failed == made.failed, "what failed in an earlier grid is not made, nor what starts from it"


def test_a_step_that_the_system_ended_is_tried_again_so_many_times() -> None:
    found = build(Spec(axes={"seed": [0, 1]}))
    first, second = (key for key, node in found.nodes.items() if node.step == "attack")
    made, told = drive(found, Body({}, {first: ATTEMPTS - 1, second: ATTEMPTS}))
    assert first in made.done
    assert made.failed[second] == "node died"
    assert told.losses == [*range(1, ATTEMPTS), *range(1, ATTEMPTS + 1)]


def test_times_are_those_of_earlier_steps_of_the_same_kind_and_model() -> None:
    nodes = list(build(Spec(axes={"model": ["preactresnet18", "vgg19_bn"]})).nodes.values())
    tags = [({"rnp.entry": "attack", "rnp.model": model}, seconds)
            for model, seconds in (("preactresnet18", 9.0), ("preactresnet18", 11.0), ("other", 100.0))]  # fmt: skip
    known = grid_table.times(tags, nodes)
    assert [known.get(node.key) for node in nodes if node.step == "attack"] == [10.0, 11.0]
    assert len(known) == 2, "of the other steps nothing is known"


def test_nodes_that_differ_are_named() -> None:
    nodes = {"a": {"code": "1", "/data": "x"}, "b": {"code": "1", "/data": "y"}}
    assert on_ray.different(nodes, ["code"]) is None
    assert on_ray.different(nodes, ["code", "/data"]) == "/data is x on a, and y on b"
