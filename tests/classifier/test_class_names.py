"""Which output a class of the data means: by name, by number, in order, or an error that names the
readings."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from good_rt.classifier.class_names import class_outputs, match_by_name, placeholder_names
from good_rt.errors import GoodRtError

UNNAMED = placeholder_names(12)
LABELS = tuple(f"LABEL_{i}" for i in range(12))
BY_TEXT = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("names", "expected_names", "outputs"),
    [
        (sorted(LABELS), LABELS, BY_TEXT),
        (sorted(LABELS), UNNAMED, BY_TEXT),
        (sorted(f"class_{i}" for i in range(12)), UNNAMED, BY_TEXT),
        (sorted(str(i) for i in range(12)), UNNAMED, BY_TEXT),
        (sorted(str(i) for i in range(12)), LABELS, BY_TEXT),
        (["00", "01", "02"], UNNAMED[:3], [0, 1, 2]),
        (["0", "1", "2"], ("cat", "dog", "bird"), [0, 1, 2]),
        (["0", "1", "2"], ("2", "0", "1"), [1, 2, 0]),
        (["class 1", "class 2"], ("class 2", "class 1"), [1, 0]),
        (["C#", "C++"], ("C++", "C#"), [1, 0]),
        (["c", "c#", "c++"], ("C++", "C#", "C"), [2, 1, 0]),
        (["A+", "A-"], ("A-", "a+"), [1, 0]),
        (["Masse", "Maße"], ("Maße", "Masse"), [1, 0]),
        (["Cat", "cat"], ("cat", "Cat"), [1, 0]),
        (["Cat", "cat", "hot_dog"], ("hot dog", "cat", "Cat"), [2, 1, 0]),
        (["🐱", "🐶"], ("🐶", "🐱"), [1, 0]),
        (["1.5", "15"], ("15", "1.5"), [1, 0]),
        (["-1", "1"], ("1", "-1"), [1, 0]),
        (["great_white", "yellow-ladys-slipper"], ("yellow lady's slipper", "Great White"), [1, 0]),
        (["cafe\u0301", "the\u0301"], ("thé", "Café"), [1, 0]),
        (["n01440764", "n01443537"], UNNAMED[:2], [0, 1]),
        (["bird", "cat"], UNNAMED[:2], [0, 1]),
    ],
)
def test_classes_are_matched(
    names: list[str], expected_names: tuple[str, ...], outputs: list[int]
) -> None:
    assert class_outputs(names, expected_names, "photos") == outputs


@pytest.mark.parametrize(
    ("names", "expected_names", "message"),
    [
        (["1", "2", "3"], UNNAMED[:3], "'3' could be the output of that number, or the one in"),
        (["0", "1", "2"], ("1", "2", "3"), "classes 0 are not among the classifier's"),
        (["0", "1"], ("class 1", "class 2"), "are numbered otherwise than the classifier's"),
        (sorted(f"room {i}" for i in range(12)), UNNAMED, "are numbered otherwise than"),
        (["0", "1"], ("1", "cat"), "classes 0 are not among the classifier's, which also has cat"),
        (["A", "A-"], ("A+", "A"), "classes A- are not among"),
        (["c", "c_"], ("C++", "C#"), "classes c, c_ are not among"),
        (["1-5", "x"], ("15", "x"), "classes 1-5 are not among"),
        (["Cat", "cat"], ("CAT", "cat"), "'Cat' and 'cat' could be the classifier's 'CAT' or"),
        (["crane", "dog"], ("crane", "crane"), "'crane' could be the classifier's 'crane' or"),
        (["LABEL_0", "cat"], ("LABEL_0", "LABEL_1"), "classes cat are not among"),
        (["cat"], UNNAMED[:2], "has 1 class .cat., the classifier 2"),
    ],
)
def test_what_could_mean_two_outputs_is_refused(
    names: list[str], expected_names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(GoodRtError, match=message) as caught:
        class_outputs(names, expected_names, "photos")
    assert "photos" in str(caught.value) and "\n" not in str(caught.value)


NAMES = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(NAMES, st.randoms())
def test_equal_names_match_whatever_their_order_and_signs(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    outputs = class_outputs(shuffled, names, "photos")
    assert [names[output] for output in outputs] == shuffled


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(NAMES, NAMES)
def test_no_two_classes_have_one_output(names: list[str], expected_names: list[str]) -> None:
    outputs = match_by_name(names, expected_names)
    assert len(set(outputs.values())) == len(outputs)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(NAMES)
def test_decomposed_names_of_a_file_system_match(names: list[str]) -> None:
    composed = list({unicodedata.normalize("NFC", name) for name in names})
    decomposed = [unicodedata.normalize("NFD", name) for name in composed]
    assert class_outputs(decomposed, composed, "photos") == list(range(len(composed)))
