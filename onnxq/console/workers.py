"""The option `--workers` of commands that run many samples."""

import argparse

from onnxq.cluster.connect import Where, parse_workers


def add_workers(parser: "argparse.ArgumentParser | argparse._ArgumentGroup", what: str) -> None:
    """Add the option.

    Args:
        parser: gets the option.
        what: what the workers do, for the help.
    """
    parser.add_argument(
        "--workers",
        metavar="N|ADDRESS",
        type=_workers,
        help=f"{what} in N processes of one core each on this machine, or on the workers of a Dask scheduler such as "
        "tcp://HOST:8786; the results are the same (needs the extra cluster)",
    )


def _workers(text: str) -> Where:
    try:
        return parse_workers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
