"""From the cells of a grid to its graph: which steps each cell has, and all that decides their results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnp_mlflow.config import DATASETS, PIPELINE, RUN_ID, Settings, names, parameters
from rnp_mlflow.grid import graph
from rnp_mlflow.grid.graph import Graph, Step
from rnp_mlflow.grid.spec import IMPORT, Spec, Values
from rnp_mlflow.steps.plan import make_plan

CONTENT = names("file", "place")  # parameters whose content decides, not their names
NEUTRAL = CONTENT | names("machine", "run", "output") | {"preset"}


@dataclass(frozen=True)
class Part:
    """One step of one cell. settings: those that decide its result. values: what its call is given."""

    step: str
    settings: Sequence[Settings]
    values: Mapping[str, Any]

    @property
    def places(self) -> list[str]:
        """Return the files and folders whose content decides."""
        found = (getattr(part, name, None) for part in self.settings for name in sorted(CONTENT))
        return [place for place in found if place and place not in DATASETS]


def parts(values: Values, spec: Spec) -> list[Part]:
    """Return the steps of a cell, in order.

    Raises:
        ConfigError: a value is wrong, or contradicts another.
    """
    shared = {name: value for name, value in values.items() if name != IMPORT}
    found: list[Part] = []
    for step in path(values, spec.step):
        given = dict(values[IMPORT] if step == IMPORT else shared | spec.steps.get(step, {}))
        plan = make_plan(step if step == IMPORT else "prune", given)
        own, given = plan[step], {name: value for name, value in given.items() if name in parameters(step)}
        # a worker may have another working folder, so paths are handed on as absolute ones
        given |= {k: v for part in plan.settings.values() for k, v in part if k in CONTENT and k in given}
        if found:  # it starts from the run of the step before it, not from one that was named
            given = {name: value for name, value in given.items() if name not in RUN_ID.values()}
        needs = spec.of(step)
        given |= {"threads": needs.threads} | ({} if needs.gpus or own.device else {"device": "cpu"})
        draws = [plan["unlearn"]] if step == "prune" and plan["prune"].mask_file else []  # it draws the clean images
        found.append(Part(step, [own, *draws], given))
    return found


def path(values: Values, last: str) -> list[str]:
    """Return the steps of a cell up to `last`; those before a run that was named are there already."""
    steps = [step for step in PIPELINE if not (values.get("mask_file") and step in ("unlearn", "recover"))]
    if IMPORT in values:
        steps[0] = IMPORT
    named = [k for k, step in enumerate(PIPELINE) if step in RUN_ID and values.get(RUN_ID[step])]
    after = PIPELINE[: max(named) + 1] if named else ()
    final = PIPELINE.index(last)
    return [step for step in steps if step not in after and (step == IMPORT or PIPELINE.index(step) <= final)]


def build(chains: Iterable[Sequence[Part]], facts: Mapping[str, str]) -> Graph:
    """Return the graph of these cells. facts: digest of the code, and of the content of each place."""
    return graph.build([[step(part, facts) for part in chain] for chain in chains], facts["code"])


def step(part: Part, facts: Mapping[str, str]) -> Step:
    """Return a step with all that decides its result, besides the steps before it."""
    decisive = {
        "settings": [settings.model_dump(mode="json", exclude=NEUTRAL) for settings in part.settings],
        "content": [facts[place] for place in part.places],
        "from": {name: part.values[name] for name in RUN_ID.values() if name in part.values},
        "device": part.values.get("device"),
        "threads": part.values["threads"],
    }
    return Step(part.step, decisive, part.values)


def columns(cells: Sequence[Values]) -> list[str]:
    """Return the names whose values differ among cells; all names of a single cell."""
    every = list(dict.fromkeys(name for values in cells for name in values))
    apart = [name for name in every if len({repr(values.get(name)) for values in cells}) > 1]
    return apart or every
