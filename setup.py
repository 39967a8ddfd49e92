"""What setup.cfg cannot say: the demo model in the package, and links in the description that lead somewhere."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildPackage(build_py):
    """Copies models/demo.onnx into the package; an editable install finds it where it is."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            self.copy_file(ROOT / "models" / "demo.onnx", Path(self.build_lib) / "onnxq" / "demo.onnx")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that this command writes."""
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / "onnxq" / "demo.onnx")]


def description() -> str:
    """Return the README; its relative links are absolute if setup.cfg names the repository.

    A package index shows the README away from its folder. Links lead to the tag of this version: pictures to
    REPOSITORY/raw/vVERSION/, pages to REPOSITORY/blob/vVERSION/.
    """
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    urls = dict(re.findall(r"^(\w+) *= *(\S+)$", config["metadata"]["project_urls"], re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if "Repository" not in urls:
        return readme
    version = re.search(r'VERSION = "(.+)"', (ROOT / "onnxq" / "version.py").read_text(encoding="utf-8"))[1]

    def absolute(link: re.Match[str]) -> str:
        before, path = link.groups()
        kind = "blob" if before == "](" else "raw"
        return f"{before}{urls['Repository'].rstrip('/')}/{kind}/v{version}/{path}"

    readme = re.sub(r"(!\[[^]]*\]\(|<img src=\")(?!https?:|#)([^)\"\s]+)", absolute, readme)
    return re.sub(r"(\]\()(?!https?:|#)([^)\s]+)", absolute, readme)


setup(cmdclass={"build_py": BuildPackage}, long_description=description())
