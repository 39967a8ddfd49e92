import pytest

from onnxq.calibration.dataset_yaml import read_dataset
from onnxq.errors import DataError


def test_splits_and_names(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split / "images").mkdir(parents=True)
    path = tmp_path / "data.yaml"
    path.write_text("train: ../train/images\nval: ../valid/images\nnames:\n  0: ring\n  1: 'no'\n")
    found = read_dataset(path)
    assert (found.train, found.val) == ((tmp_path / "train/images",), (tmp_path / "valid/images",))
    assert found.names == ("ring", "no")


def test_a_file_without_splits_is_refused(tmp_path):
    (tmp_path / "data.yaml").write_text("nc: 3\n")
    with pytest.raises(DataError, match="names neither train nor val"):
        read_dataset(tmp_path / "data.yaml")
