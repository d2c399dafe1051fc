"""Names of results and of input files: unique for any names of images."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.process.jobs import PLACEHOLDERS, check_pattern, fill_pattern, name_results

# Few letters, so that names collide often; some stems are the full names of other images.
names = st.builds(
    "{}{}".format, st.sampled_from(["a", "b", "a.png", "a.png.jpg", "é"]), st.sampled_from(["", ".png", ".jpg", ".PNG"])
)
images = st.lists(st.tuples(st.sampled_from(["", "b", "b/a"]), names), unique=True, max_size=30)


@pytest.mark.parametrize(
    ("given_images", "expected"),
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
def test_results_are_named_by_the_stem_unless_it_is_shared(
    given_images: list[tuple[str, str]], expected: list[str]
) -> None:
    assert name_results(given_images) == expected


@given(images)
def test_names_are_unique_and_stay_in_their_folder(given_images: list[tuple[str, str]]) -> None:
    chosen = name_results(given_images)
    assert len(set(chosen)) == len(given_images)
    for (folder, name), result in zip(given_images, chosen, strict=True):
        assert os.path.split(result) in {(folder, name), (folder, os.path.splitext(name)[0])}


@given(images, st.randoms())
def test_names_do_not_depend_on_the_order(given_images: list[tuple[str, str]], random: object) -> None:
    order = list(range(len(given_images)))
    random.shuffle(order)  # type: ignore[attr-defined]
    chosen = name_results(given_images)
    assert name_results([given_images[index] for index in order]) == [chosen[index] for index in order]


@given(images, st.tuples(st.just(""), names))
def test_added_image_takes_no_name_of_an_earlier_one(
    given_images: list[tuple[str, str]], added: tuple[str, str]
) -> None:
    if added in given_images:
        return
    before = dict(zip(given_images, name_results(given_images), strict=True))
    after = name_results([*given_images, added])[-1]
    owner = next((image for image, name in before.items() if name == after), None)
    # The exception: the full name of the added image equals the stem of an earlier one.
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
def test_pattern_is_filled_in(pattern: str, expected: str) -> None:
    check_pattern(pattern)
    assert fill_pattern(pattern, "photos/x/a.b.png", "x") == expected


def test_folder_of_a_bare_name_is_the_current_one() -> None:
    assert fill_pattern("{dir}/{sub}/{stem}", "a.png", "") == "././a"


@pytest.mark.parametrize("pattern", ["{stam}.json", "{}.json", "{stem", "stem}", "{{stem}}", "{stem.__class__}", "{0}"])
def test_invalid_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*\{stem\}"):
        check_pattern(pattern)


@given(st.lists(st.sampled_from([*(f"{{{name}}}" for name in PLACEHOLDERS), "x", "/", ".", "-"])), names)
def test_values_are_not_parsed_as_patterns(parts: list[str], name: str) -> None:
    pattern = "".join(parts)
    check_pattern(pattern)
    image = f"{{stem}}/{{x}}{name}"
    values = {
        "{dir}": "{stem}",
        "{name}": f"{{x}}{name}",
        "{stem}": os.path.splitext(f"{{x}}{name}")[0],
        "{sub}": "{name}",
    }
    assert fill_pattern(pattern, image, "{name}") == "".join(values.get(part, part) for part in parts)
