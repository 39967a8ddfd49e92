import numpy as np
from raw_outputs import declaring

from onnxq.yolo.detector import clues_of
from onnxq.yolo.evidence import Look
from onnxq.yolo.joined_outputs import JoinedOutputs, join_outputs


def joined(outputs: dict[str, np.ndarray]) -> list[JoinedOutputs]:
    looks = [Look(outputs, (0, 0, 64, 64))] * 2
    clues = clues_of(declaring(outputs), (64, 64), {name: array.shape for name, array in outputs.items()})
    return list(join_outputs(clues, looks))


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_outputs_with_the_same_rows_stand_side_by_side() -> None:
    boxes, scores = numbers(1, 30, 4), numbers(1, 7, 30)
    [found] = joined({"b": boxes, "other": numbers(1, 3, 8, 8), "s": scores})
    assert found.members == ["b", "s"]
    assert found.of("s") == list(range(4, 11))
    assert found.looks[0].tolist() == np.concatenate([boxes[0], scores[0].T], axis=1).tolist()


def test_as_few_rows_as_columns_may_be_either() -> None:
    table = numbers(1, 5, 6)
    assert [found.looks[0].shape for found in joined({"out": table})] == [(6, 5), (5, 6)]
    assert [found.looks[0].shape for found in joined({"out": numbers(1, 10, 500)})] == [(500, 10)]


def test_rows_of_minus_one_are_left_out() -> None:
    table = numbers(1, 30, 6)
    table[0, 20:] = -1
    [found] = joined({"out": table})
    assert found.looks[0].tolist() == table[0, :20].tolist()


def test_a_table_without_padding_is_not_copied() -> None:
    table = numbers(1, 30, 6)
    [found] = joined({"out": table})
    assert np.shares_memory(found.looks[0], table)


def test_one_table_without_a_batch_is_a_list() -> None:
    assert [joined({"out": numbers(*shape)})[0].is_list for shape in ((30, 7), (1, 1, 30, 7), (1, 30, 7))] == [
        True,
        True,
        False,
    ]
