"""Print the requirements of the core of the tests, for pip.

They are those of setup.cfg; with the argument `lowest` each names the lowest version that setup.cfg allows.
"""

import configparser
import re
import sys
from pathlib import Path

EXTRAS = ("openvino", "test")

settings = configparser.ConfigParser()
settings.read(Path(__file__).resolve().parents[1] / "setup.cfg", encoding="utf-8")
tables = [settings["options"]["install_requires"], *(settings["options.extras_require"][name] for name in EXTRAS)]
requirements = [line.strip() for table in tables for line in table.splitlines() if line.strip()]
for requirement in requirements:
    if not re.fullmatch(r"[\w.-]+>=[\w.]+", requirement):
        sys.exit(f"setup.cfg: expected NAME>=VERSION, got {requirement}")
    print(requirement.replace(">=", "==") if sys.argv[1:] == ["lowest"] else requirement)
