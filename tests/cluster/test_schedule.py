"""Which node comes next, by hand."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from othink_pipeline.cluster.schedule import Schedule


def node(name: str, inputs: Any, outputs: Any) -> Node:
    return Node(lambda *_: None, inputs, outputs, name=name)


PIPELINE = Pipeline(
    [
        node("prepare", "raw", "examples"),
        node("train_a", "examples", ["a", "history"]),
        node("train_b", "examples", "b"),
        node("test_a", ["a", "examples"], "score_a"),
        node("report", ["score_a", "b"], "text"),
    ]
)
NODES = {each.name: each for each in PIPELINE.nodes}


def lane_of(each: Node) -> int:
    return {"test_": 1, "train": 2}.get(each.name[:5], 0)


def room(_: Node) -> bool:
    return True


def taken(schedule: Schedule) -> list[str]:
    names = []
    while (each := schedule.pop(room)) is not None:
        names.append(each.name)
    return names


def test_a_node_comes_once_all_that_it_waits_for_is_done() -> None:
    schedule = Schedule(PIPELINE, lane_of, 3)
    assert taken(schedule) == ["prepare"]
    schedule.finish(NODES["prepare"])
    assert taken(schedule) == ["train_a", "train_b"]
    schedule.finish(NODES["train_b"])
    assert taken(schedule) == []
    schedule.finish(NODES["train_a"])
    assert taken(schedule) == ["test_a"]
    schedule.finish(NODES["test_a"])
    assert taken(schedule) == ["report"]


def test_former_lanes_go_first_and_one_without_room_is_passed_by() -> None:
    schedule = Schedule(PIPELINE, lane_of, 3)
    schedule.finish(NODES["prepare"])  # both trainings are ready, and the node itself
    schedule.finish(NODES["train_a"])
    assert schedule.pop(lambda each: lane_of(each) == 2) is NODES["train_a"]
    assert taken(schedule) == ["prepare", "test_a", "train_b"]


def test_a_dataset_is_let_go_once_its_last_reader_is_done() -> None:
    schedule = Schedule(PIPELINE, lane_of, 3)
    gone = {name: schedule.finish(NODES[name]) for name in NODES}
    assert gone == {
        "prepare": [],  # what a pipeline reads stays
        "train_a": [],  # so does what it makes for nobody
        "train_b": [],
        "test_a": ["a", "examples"],
        "report": ["score_a", "b"],
    }
