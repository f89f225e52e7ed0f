"""Unknown names are answered with the nearest known one, and a list that stays short."""

from mirai_bench.utils.errors import unknown


def test_the_nearest_name_is_suggested_and_all_are_listed():
    assert str(unknown("arm", "mira-e", ["baseline", "mirai-e"])) == (
        "Unknown arm 'mira-e'. Did you mean 'mirai-e'? Known: baseline, mirai-e"
    )


def test_names_that_go_on_from_what_was_written_are_suggested():
    known = ["imagenet256_b", "imagenet256_l", "digits"]
    message = str(unknown("profile", "imagenet256", known))
    assert "Did you mean 'imagenet256_b' or 'imagenet256_l'?" in message
    assert "Did you mean" not in str(unknown("profile", "", known))


def test_nothing_is_suggested_if_nothing_is_near_and_a_long_list_is_cut():
    message = str(unknown("size", 7, range(100, 125)))
    assert message.startswith("Unknown size '7'. Known: 100, 101, ")
    assert message.endswith(", 119, …")


def test_a_very_long_name_is_cut():
    assert len(str(unknown("field", "x" * 10_000, ["y" * 10_000]))) < 250
