"""Where results go: no two photos to one place, whatever their names."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.process.naming import PLACEHOLDERS, check_pattern, fill_pattern, name_results

# Few letters, so that names meet often; some of them would be the whole names of others.
names = st.builds(
    "{}{}".format, st.sampled_from(["a", "b", "a.png", "a.png.jpg", "é"]), st.sampled_from(["", ".png", ".jpg", ".PNG"])
)
places = st.lists(st.tuples(st.sampled_from(["", "b", "b/a"]), names), unique=True, max_size=30)


@pytest.mark.parametrize(
    ("given_places", "expected"),
    [
        ([("", "a.png")], ["a"]),
        ([("", "a.png"), ("", "b.png")], ["a", "b"]),
        ([("", "a.png"), ("x", "a.png")], ["a", "x/a"]),
        ([("", "a.png"), ("", "a.jpg")], ["a.png", "a.jpg"]),
        ([("", "a.png"), ("", "a.PNG"), ("", "b.png")], ["a.png", "a.PNG", "b"]),
        ([("", "a.png"), ("", "a.jpg"), ("", "a.png.webp")], ["a.png", "a.jpg", "a.png.webp"]),
        ([("", "a"), ("", "a.png")], ["a", "a.png"]),
        ([("", "a.tar.png")], ["a.tar"]),
    ],
)
def test_results_are_named_by_the_stem_unless_that_is_shared(
    given_places: list[tuple[str, str]], expected: list[str]
) -> None:
    assert name_results(given_places) == expected


@given(places)
def test_no_two_photos_share_a_name_and_each_stays_in_its_folder(given_places: list[tuple[str, str]]) -> None:
    chosen = name_results(given_places)
    assert len(set(chosen)) == len(given_places)
    for (folder, name), result in zip(given_places, chosen, strict=True):
        assert os.path.split(result) in {(folder, name), (folder, os.path.splitext(name)[0])}


@given(places, st.randoms())
def test_names_do_not_depend_on_the_order(given_places: list[tuple[str, str]], random: object) -> None:
    order = list(range(len(given_places)))
    random.shuffle(order)  # type: ignore[attr-defined]
    chosen = name_results(given_places)
    assert name_results([given_places[at] for at in order]) == [chosen[at] for at in order]


@given(places, st.tuples(st.just(""), names))
def test_a_photo_that_is_added_takes_no_name_that_another_had(
    given_places: list[tuple[str, str]], added: tuple[str, str]
) -> None:
    if added in given_places:
        return
    before = dict(zip(given_places, name_results(given_places), strict=True))
    after = name_results([*given_places, added])[-1]
    owner = next((place for place, name in before.items() if name == after), None)
    # Only a photo whose whole name is another's stem may: that other is the same file but for its own suffix.
    assert owner is None or after == os.path.join(*added)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{dir}/{stem}.json", "photos/x/a.b.json"),
        ("{dir}/../points/{name}.json", "photos/x/../points/a.b.png.json"),
        ("/points/{sub}/{stem}.json", "/points/x/a.b.json"),
        ("one.json", "one.json"),
    ],
)
def test_patterns_are_filled_in(pattern: str, expected: str) -> None:
    check_pattern(pattern)
    assert fill_pattern(pattern, "photos/x/a.b.png", "x") == expected


def test_a_photo_of_the_current_folder_has_a_folder() -> None:
    assert fill_pattern("{dir}/{sub}/{stem}", "a.png", "") == "././a"


@pytest.mark.parametrize("pattern", ["{stam}.json", "{}.json", "{stem", "stem}", "{{stem}}", "{stem.__class__}", "{0}"])
def test_patterns_that_cannot_be_filled_in_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*\{stem\}"):
        check_pattern(pattern)


@given(st.lists(st.sampled_from([*(f"{{{name}}}" for name in PLACEHOLDERS), "x", "/", ".", "-"])), names)
def test_what_is_filled_in_is_never_read_as_a_pattern(parts: list[str], name: str) -> None:
    pattern = "".join(parts)
    check_pattern(pattern)
    photo = f"{{stem}}/{{x}}{name}"
    values = {
        "{dir}": "{stem}",
        "{name}": f"{{x}}{name}",
        "{stem}": os.path.splitext(f"{{x}}{name}")[0],
        "{sub}": "{name}",
    }
    assert fill_pattern(pattern, photo, "{name}") == "".join(values.get(part, part) for part in parts)
