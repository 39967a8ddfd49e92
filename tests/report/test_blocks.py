from onnxq.report.blocks import Name, Number, Table, spans


def test_numbers_have_a_format_and_none_is_a_dash():
    assert [str(Number(value, ".2f")) for value in (1.005, 0.0, None)] == ["1.00", "0.00", "-"]


def test_a_table_tells_the_kind_of_its_columns():
    table = Table(("name", "count"), ((Name("conv"), Number(3, "d")),))
    assert (table.has(Name), table.has(Number)) == ([True, False], [False, True])
    assert Table(("name", "count"), ()).has(Name) == [False, False]


def test_text_is_split_at_its_backticks():
    assert list(spans("give `--calib` or `-o`")) == [
        (False, "give "), (True, "--calib"), (False, " or "), (True, "-o"), (False, ""),
    ]  # fmt: skip
