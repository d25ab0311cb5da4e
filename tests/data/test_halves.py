"""Splits for weak supervision: groups stay together, classes are cut to half, and every refusal is in words."""

import hashlib
import json
import random
from collections import Counter

import pytest
from shared_files import shared_file

from holdfast.data.halves import SHARES, balanced, halves, hash_of, identities, take
from holdfast.data.schema import Classified, Conversation
from holdfast.data.sources import DataSettings, read
from holdfast.data.split import leaks
from holdfast.errors import UserError


def rows(count: int, frequent: float = 0.5, groups: int = 0) -> list[Classified]:
    """Texts of which the share `frequent` is of class 1; `groups` of related ones where that is above 0."""
    return [
        Classified(
            id=f"row {i}",
            conversation=Conversation.ask(f"question {i}"),
            label=str(int(i < round(frequent * count))),
            group=f"group {i % groups}" if groups else "",
        )
        for i in range(count)
    ]


def label(row: Classified) -> str:
    return row.label


def ids(records) -> set[str]:
    return {record.id for record in records}


def test_no_group_stands_in_two_splits() -> None:
    data = rows(1200, groups=300)
    found = halves(data)
    assert set(found.splits) == set(SHARES) == {"weak_train", "transfer", "validation", "test"}
    assert sorted(row.id for split in found.splits.values() for row in split) == sorted(ids(data))
    places = {row.group: name for name, split in found.splits.items() for row in split}
    assert all(places[row.group] == name for name, split in found.splits.items() for row in split)
    assert leaks(found.splits["weak_train"], found.splits["transfer"]) == []
    for name, share in SHARES.items():
        # Four standard deviations of a binomial share of 300 groups.
        assert abs(len(found.splits[name]) / 1200 - share) < 4 * (share * (1 - share) / 300) ** 0.5


def test_equal_texts_stay_together_whatever_their_group() -> None:
    data = rows(300)
    twins = [row.model_copy(update={"id": f"twin of {row.id}", "group": f"alone {row.id}"}) for row in data]
    found = halves([*data, *twins])
    for split in found.splits.values():
        assert {f"twin of {name}" for name in ids(split) if not name.startswith("twin")} <= ids(split)


def test_neither_order_nor_chance_moves_a_row() -> None:
    data = rows(500, frequent=0.8)
    shuffled = random.Random(0).sample(data, len(data))
    first, second = halves(data, balance=label), halves(shuffled, balance=label)
    assert first.hashes == second.hashes
    assert ids(first.dropped) == ids(second.dropped)
    assert halves(data, salt="other", balance=label).hashes != first.hashes
    names = sorted(ids(first.splits["test"]))
    assert first.hashes["test"] == hashlib.sha256(json.dumps(names).encode()).hexdigest()


def test_a_frequent_class_is_cut_and_what_was_dropped_is_told() -> None:
    data = rows(1000, frequent=0.8)
    found = halves(data, balance=label)
    kept = [row for split in found.splits.values() for row in split]
    assert Counter(row.label for row in found.splits["test"]).most_common()[0][1] * 2 == len(found.splits["test"])
    assert len(kept) + len(found.dropped) == 1000
    assert ids(kept) | ids(found.dropped) == ids(data)
    assert found.counts()["dropped"] == len(found.dropped)
    assert sum(row.label == "1" for row in found.dropped) >= 600
    assert halves(data).dropped == []


def test_the_test_split_is_exactly_half_even_when_the_data_need_no_cut() -> None:
    found = halves(rows(1000, frequent=0.54), balance=label)
    counts = Counter(row.label for row in found.splits["test"])
    assert counts["0"] == counts["1"]
    # Only the test split was touched.
    assert 0 < len(found.dropped) < 60


@pytest.mark.parametrize("frequent, expected", [(0.5, 100), (0.55, 100), (0.56, 88), (0.9, 20), (0.44, 88)])
def test_the_border_is_fifty_five_percent(frequent, expected) -> None:
    kept, dropped = balanced(rows(100, frequent), label)
    assert (len(kept), len(dropped)) == (expected, 100 - expected)
    if dropped:
        assert set(Counter(row.label for row in kept).values()) == {expected // 2}
        assert len({row.label for row in dropped}) == 1


def test_exactly_fifty_five_percent_is_not_too_much() -> None:
    # 0.55 of 20 is a whole number also for a computer, 0.55 of 100 is not.
    assert 0.55 * 20 == 11.0
    assert balanced(rows(20, 0.55), label).dropped == []


def test_of_many_classes_only_the_frequent_one_is_cut() -> None:
    data = [row.model_copy(update={"label": "1" if i < 70 else str(i % 3 + 2)}) for i, row in enumerate(rows(100))]
    kept, dropped = balanced(data, label)
    assert Counter(row.label for row in kept) == {"1": 30, "2": 10, "3": 10, "4": 10}
    assert ([row.id for row in kept], len(dropped)) == ([row.id for row in data if row in kept], 40)


def test_the_salt_chooses_who_is_dropped() -> None:
    data = rows(400, 0.9)
    assert ids(balanced(data, label).dropped) == ids(balanced(data[::-1], label).dropped)
    assert ids(balanced(data, label).dropped) != ids(balanced(data, label, "other").dropped)


def test_rows_drawn_after_balancing_are_of_both_classes() -> None:
    """Drawn by one and the same hash, the class that was cut would come first."""
    kept, _ = balanced(rows(2000, 0.9), label, "salt")
    drawn = Counter(row.label for row in take(kept, 100, "salt"))
    # Five standard deviations of a fair draw of 100.
    assert abs(drawn["1"] - 50) < 25


def test_more_rows_are_drawn_by_adding() -> None:
    data = rows(50)
    few, many = take(data, 10, "s"), take(data, 20, "s")
    assert ids(few) < ids(many)
    assert [row.id for row in few] == [row.id for row in data if row in few]
    assert ids(take(data[::-1], 10, "s")) == ids(few) != ids(take(data, 10, "t"))
    assert take(data, 50) == data


@pytest.mark.parametrize("count", [0, 6])
def test_what_cannot_be_drawn(count) -> None:
    with pytest.raises(UserError, match=f"{count} rows are asked of weak_train, which holds 5; ask for fewer"):
        take(rows(5), count, name="weak_train")


def test_one_class_teaches_nothing() -> None:
    with pytest.raises(UserError, match=r"all 9 rows of the data are of one class \(1\)"):
        halves(rows(9, 1.0), balance=label)
    with pytest.raises(UserError, match=r"all 50 rows of split a are of one class \(0\)"):
        halves([row.model_copy(update={"group": row.label}) for row in rows(100)], {"a": 0.5, "b": 0.5}, "0", label)
    with pytest.raises(UserError, match=r"all 0 rows of the data are of one class \(none\)"):
        balanced([], label)


def test_ids_must_tell_rows_apart() -> None:
    data = rows(4)
    assert identities(data) == ["row 0", "row 1", "row 2", "row 3"]
    with pytest.raises(UserError, match="2 rows have the id row 0; give every row an id of its own"):
        halves([*data, data[0]])
    with pytest.raises(UserError, match="1 rows have no id"):
        halves([*data, Conversation.ask("q")])


def test_too_few_rows_for_the_splits() -> None:
    with pytest.raises(UserError, match="of 2 rows none fell into"):
        halves(rows(2))


def test_the_hash_is_of_names_and_not_of_letters() -> None:
    assert hash_of(["a", "bc"]) != hash_of(["ab", "c"]) != hash_of(["abc"])
    assert hash_of([]) == hash_of(())


@pytest.mark.shared
def test_offensive_posts_are_cut_to_half() -> None:
    found = read(DataSettings(path=shared_file("w2s/davidson_offensive.jsonl.gz"), split="all")).records
    assert Counter(row.label for row in found) == {"0": 1430, "1": 19190, "2": 4163}
    kept, dropped = balanced(found, lambda row: str(row.label == "2"))
    assert (len(kept), len(dropped)) == (8326, 24783 - 8326)


@pytest.mark.shared
def test_no_entity_and_no_prompt_stands_in_two_splits() -> None:
    claims = read(DataSettings(path=shared_file("w2s/creak.jsonl.gz"), split="all")).records
    found = halves(claims, balance=label)
    groups = [{row.group for row in split} for split in found.splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    pairs = read(
        DataSettings(path=shared_file("w2s/hh_harmless_single_turn.jsonl.gz"), split="all", on_bad_row="skip")
    ).records
    # The blocks of the source share prompts; splits by prompt do not.
    blocks = {name: [pair for pair in pairs if pair.split == name] for name in ("half_a", "half_b", "test")}
    assert len(leaks(blocks["half_a"], blocks["half_b"])) > 0
    splits = halves(pairs).splits
    assert all(leaks(splits[a], splits[b]) == [] for a in splits for b in splits if a < b)
