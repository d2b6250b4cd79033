"""Personal data: each kind, what only looks like it, and the fixture's recall and precision."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from rlhf.core.errors import ConfigError
from sft.prepare.pii import Found, PatternFinder, PersonalData, masked
from sft.prepare.pii_numbers import iban_is_valid, luhn
from sft.prepare.pii_presidio import PresidioFinder, chosen_model
from sft.prepare.pii_secrets import entropy
from sft.prepare.rows import Sample

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "prove"))

from preparing.pii_fixture import look_alikes, planted
from preparing.pii_measure import measure

FINDER = PatternFinder("US")


def mask(text: str, region: str | None = "US") -> str:
    return masked(text, PatternFinder(region).find(text))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("Write to Ana.B+x@mail.example.co.uk, please.", "Write to [EMAIL], please."),
        ("Call (202) 555-0125 now", "Call [PHONE] now"),
        ("It is +49 30 23125 123.", "It is [PHONE]."),
        ("my number is 2025550125", "my number is [PHONE]"),
        ("pay GB82 WEST 1234 5698 7654 32 today", "pay [IBAN] today"),
        ("card 4111 1111 1111 1111 123, thanks", "card [CARD] 123, thanks"),
        ("from 192.0.2.17 and 2001:db8::7334:1", "from [IP] and [IP]"),
        ("Bearer " + "gh" + "p_" + "aB3dE5fG7hJ9kL2mN4pQ6rS8tU1vW3xY5zA7", "Bearer [KEY]"),
        ("password = hunter2Gx9155!", "password = [KEY]!"),
    ],
)
def test_each_kind_is_masked_whole(text: str, after: str) -> None:
    assert mask(text) == after


@pytest.mark.parametrize(
    "text",
    [
        "firmware 10.2.0.1 and v1.2.3.4",
        "127.0.0.1, 0.0.0.0 and 255.255.255.0",
        "std::vector, a::b and 12:30:45",
        "ISBN 978-3-16-148410-0",
        "order number 4111111111111111",
        "4111 1111 1111 1112",
        "icon@2x.png, git@example.com:x/y.git, @ana",
        "3.14159265358 and 1 234 567 890",
        "commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "the token is sk-learn-estimators-and-pipelines",
        "GB82 WEST 1234 5698 7654 33",
        "2024-05-17 12:00 to 2024-05-18",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(text) == text


def test_a_region_says_what_a_national_number_is() -> None:
    assert mask("tel. 030 23125 123", "DE") == "tel. [PHONE]"
    assert mask("tel. 030 23125 123", None) == "tel. 030 23125 123"


def test_checksums_by_hand() -> None:
    # Luhn of 18: 8 + 2 * 1 = 10; of 59: 9 + (2 * 5 - 9) = 10; of 19: 9 + 2 = 11
    assert luhn("18")
    assert luhn("59")
    assert not luhn("19")
    # the example of ISO 13616; one digit more or less, or another one, is wrong
    assert iban_is_valid("GB82WEST12345698765432")
    assert not iban_is_valid("GB82WEST12345698765431")
    assert not iban_is_valid("GB82WEST1234569876543")
    # two characters, equally often: one bit each
    assert entropy("abab") == 1.0
    assert entropy("aaaa") == 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_and_precision_on_the_fixture(seed: int) -> None:
    lines, others = planted(seed), look_alikes(seed)
    assert (len(lines), len(others)) == (200, 2000)
    found = measure(FINDER, lines, others)
    assert found.recall >= 0.95, found.missed
    assert found.precision >= 0.9, found.wrong
    assert all(hits >= 0.8 * number for hits, number in found.per_kind.values()), found.per_kind


def test_the_measure_sees_what_it_must_see() -> None:
    class Blind:
        def find(self, text: str) -> list[Found]:
            return []

    class Wild:
        def find(self, text: str) -> list[Found]:
            return [Found(0, 1, "EMAIL")]

    lines, others = planted(0), look_alikes(0)
    assert measure(Blind(), lines, others).recall == 0
    assert measure(Wild(), lines, others).precision < 0.05


def test_modes_and_counts() -> None:
    text = "a@example.com and b@example.com"
    for mode, after in (("mask", "[EMAIL] and [EMAIL]"), ("report", text)):
        personal, sample = PersonalData(mode, FINDER), Sample(text=text, metadata={"from": [text[:13], 1]})
        assert personal.apply(sample) == ["EMAIL"]
        assert sample.text == after
        assert sample.metadata == {"from": [after.split()[0], 1]}
        assert (personal.items["EMAIL"], personal.rows["EMAIL"]) == (3, 1)


def test_presidio_is_asked_for_by_name() -> None:
    if importlib.util.find_spec("presidio_analyzer") is not None:
        pytest.xfail("presidio is installed here")
    with pytest.raises(ConfigError, match="presidio-analyzer is not installed"):
        PresidioFinder("US")


def test_presidio_takes_a_model_that_is_installed_and_downloads_none(tmp_path: Path) -> None:
    assert chosen_model(None, ["de_core_news_lg", "en_core_web_sm", "en_core_web_md"]) == "en_core_web_md"
    assert chosen_model("de_core_news_lg", ["de_core_news_lg"]) == "de_core_news_lg"
    assert chosen_model(str(tmp_path), []) == str(tmp_path)
    with pytest.raises(
        ConfigError, match="no English spaCy model is installed; expected python -m spacy download"
    ):
        chosen_model(None, ["de_core_news_lg"])
    with pytest.raises(
        ConfigError, match="en_core_web_trf: is not installed and no folder; installed: en_core_web_sm"
    ):
        chosen_model("en_core_web_trf", ["en_core_web_sm"])
