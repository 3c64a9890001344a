from pathlib import Path

import pytest

import fastltssl
from fastltssl.errors import PromptError
from fastltssl.images.prompts import TEMPLATES, prompts, templates, templates_of
from fastltssl.images.world.world import CLASSES

TOKENS = Path(fastltssl.__file__).parent / "tiny" / "bpe_tiny.txt.gz"


def test_prompts_are_listed_by_class_then_template():
    assert prompts(("cat", "dog"), "world") == [
        ["a photo of a cat", "a picture of a cat", "a sketch of a cat", "cat"],
        ["a photo of a dog", "a picture of a dog", "a sketch of a dog", "dog"],
    ]
    assert prompts(("sea horse", "{}", "ant"), "simple")[:2] == [["a photo of a sea horse."], ["a photo of a {}."]]


@pytest.mark.parametrize(("name", "count"), [("simple", 1), ("world", 4), ("openai7", 7), ("openai80", 80)])
def test_every_template_has_one_place_for_the_class_and_none_is_twice(name, count):
    patterns = templates(name)
    assert len(set(patterns)) == len(patterns) == count
    assert all(pattern.count("{}") == 1 == pattern.count("{") for pattern in patterns)


def test_sets_are_joined_by_commas_and_every_prompt_is_once():
    assert templates("simple, cifar10") == templates("cifar10")
    assert len(templates("cifar10")) == 18
    assert templates("food101,simple") == ("a photo of {}, a type of food.", "a photo of a {}.")
    assert [templates_of(name) for name in ("food101", "folder:x", "world")] == ["simple,food101", "simple", "simple"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_holds_the_class_once(name):
    assert all(pattern.count("{}") == 1 and "{" not in pattern.format("cat") for pattern in templates(name))


def test_the_published_sets_hold_their_first_templates():
    assert templates("openai80")[0] == "a bad photo of a {}."
    assert templates("openai7")[0] == "itap of a {}."


def test_an_unknown_set_gets_the_nearest_name_and_the_known_ones():
    with pytest.raises(
        PromptError, match=r"'openai8' is not .* Did you mean 'openai80'\? Known: simple, world, cifar10"
    ):
        templates("openai8")


def test_the_tiny_tokenizer_has_a_token_for_every_word_of_the_world_prompts():
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(bpe_path=str(TOKENS), context_length=12)
    for texts in prompts(CLASSES, "world"):
        assert [len(tokenizer.encode(text)) for text in texts] == [5, 5, 5, 1]
