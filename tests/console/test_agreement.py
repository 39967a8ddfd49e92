from onnxq.console.agreement import agreement_rows
from onnxq.evaluation.agreement import Agreement


def test_counts_shares_and_means_have_titles_that_name_the_two():
    rows = agreement_rows(Agreement(images=2, expected=4, matched=3, new=1, iou=2.7, scores=0.03), "detect", "A", "B")
    assert rows == [
        ("objects of A", "4"),
        ("found again, same class, IoU 0.5 or more", "75.0 %"),
        ("mean IoU of these", "0.9000"),
        ("mean score difference of these", "0.0100"),
        ("objects of B only", "1"),
    ]


def test_what_has_nothing_to_average_is_a_dash():
    assert dict(agreement_rows(Agreement(images=1), "detect", "A", "B"))["mean IoU of these"] == "-"


def test_classes():
    rows = agreement_rows(Agreement(images=4, top1=3, top5=4), "classify", "A", "B")
    assert rows == [("same top-1 class", "75.0 %"), ("top-1 class of A in the top 5", "100.0 %")]
