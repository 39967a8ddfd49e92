import argparse

import pytest

from onnxq.console.workers import add_workers


@pytest.fixture
def parser():
    made = argparse.ArgumentParser(prog="a command")
    add_workers(made, "run it")
    return made


def test_a_number_an_address_or_nothing(parser):
    found = [parser.parse_args(words).workers for words in ([], ["--workers", "3"], ["--workers", "tcp://host:1"])]
    assert found == [None, 3, "tcp://host:1"]


def test_other_words_are_wrong_usage(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--workers", "host"])
    assert end.value.code == 2
    assert "--workers: expected a number of processes below 1000, or the address of a scheduler as tcp://HOST" in (
        capsys.readouterr().err
    )


def test_help_says_what_they_do(parser):
    assert "run it in N processes of one core each" in " ".join(parser.format_help().split())
