import pytest
from calibration_data import paint


@pytest.fixture
def folder(tmp_path):
    """Ten images 00.png to 09.png; the grey level of each is its number."""
    for level in range(10):
        paint(tmp_path / "pictures" / f"{level:02}.png", level)
    return tmp_path / "pictures"
