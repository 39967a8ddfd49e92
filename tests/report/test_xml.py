from xml.etree import ElementTree as ET

import pytest

from onnxq.report.xml import Markup, escaped, tag, together

HOSTILE = ["<b>&\"'", "]]>", "</script>", "-->", "\x00\x08\x1f", "\ufffe", "é 检测 \U0001f600", "a\nb\tc"]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_and_attribute_is_read_back_as_it_was(text):
    found = ET.fromstring(tag("p", text, title=text))
    shown = text.replace("\x00\x08\x1f", r"\x00\x08\x1f").replace("\ufffe", r"\ufffe")
    assert found.text == shown
    assert found.get("title") == shown.replace("\n", " ").replace("\t", " ")  # XML 1.0, section 3.3.3


def test_markup_is_not_escaped_again():
    assert tag("p", tag("b", "<"), "<") == "<p><b>&lt;</b>&lt;</p>"
    assert together("&", Markup("&amp;"), 3) == "&amp;&amp;3"
    assert escaped(escaped("<")) == "&lt;"


def test_attributes_have_names_that_python_allows():
    made = tag("input", class_="n", data_value=3, aria_label=None, name="x")
    assert made == '<input class="n" data-value="3" name="x"/>'


def test_what_has_no_inside_closes_itself():
    assert tag("line", x1=0) == '<line x1="0"/>'
    assert tag("td") == "<td></td>"
