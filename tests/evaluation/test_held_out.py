import re

import pytest

from onnxq.errors import ConfigError
from onnxq.evaluation.held_out import require_held_out


@pytest.fixture
def files(tmp_path):
    """Three calibration files and three others; one of these is a copy under another name."""
    found = {}
    for folder, contents in (("calibration", "abc"), ("evaluation", "dbe")):
        (tmp_path / folder).mkdir()
        found[folder] = [tmp_path / folder / f"{folder}{number}.png" for number in range(3)]
        for path, content in zip(found[folder], contents):
            path.write_text(content)
    return found["calibration"], found["evaluation"]


def test_a_copy_of_a_calibration_image_is_refused(files):
    message = r"--images: .*evaluation1\.png is also a calibration image, as .*calibration1\.png; .*--on-calibration"
    with pytest.raises(ConfigError, match=message):
        require_held_out(*files)


def test_other_images_are_accepted(files):
    calibration, evaluation = files
    require_held_out(calibration, [evaluation[0], evaluation[2]])
    require_held_out((), evaluation)


def test_files_that_do_not_exist_are_ignored(files, tmp_path):
    require_held_out(files[0], [tmp_path / "none.png"])


def test_the_same_file_is_refused(files):
    with pytest.raises(ConfigError, match=re.escape(str(files[0][0]))):
        require_held_out(files[0], files[0][:1])
