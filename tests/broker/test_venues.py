"""The table of venues and cases: whole, told in the document, and true of each row."""

import re
from pathlib import Path
from uuid import UUID

import pytest

from services.broker.ports import Account, VenueRefused
from tests.broker.cases import CASES, reason_to_skip
from tests.broker.rig import Rigs
from tests.broker.venues import DOCUMENT, VENUES, with_tables

rows = pytest.mark.parametrize("rigs", VENUES, ids=lambda rigs: rigs.name)


def test_every_case_is_written_once_and_each_has_its_own_name():
    written = [
        number
        for path in sorted(Path(__file__).parent.glob("test_venues*.py"))
        for number in re.findall(r'^@case\("(V\d+)"\)|^# case (V\d+)', path.read_text(), re.MULTILINE)
    ]
    assert sorted("".join(one) for one in written) == list(CASES)
    assert len({case.name for case in CASES.values()}) == len(CASES)


def test_the_document_tells_the_table_as_it_is():
    told = DOCUMENT.read_text()
    assert told == with_tables(told), "run: python -m tests.broker.venues"


def test_every_case_is_shown_by_some_venue():
    for case in CASES.values():
        assert any(reason_to_skip(case, one.adapter.capabilities, one.lacks) is None for one in VENUES), case.title


@rows
def test_a_row_lacks_only_what_is_a_case_and_what_its_capabilities_do_not_rule_out(rigs: Rigs):
    known = {case.name: case for case in CASES.values()}
    assert rigs.lacks <= known.keys()
    assert not [name for name in rigs.lacks if known[name].need(rigs.adapter.capabilities)]


@rows
async def test_a_row_says_whether_its_venue_knows_ids(rigs: Rigs):
    async with rigs.open() as rig:
        assert rig.venue.knows_ids == ("same-id-twice" not in rigs.lacks)
        assert rig.venue.capabilities == rigs.adapter.capabilities


# case V21
@rows
def test_credentials_of_the_wrong_shape_are_refused_before_anything_is_asked(rigs: Rigs):
    account = Account(UUID(int=7), UUID(int=1), rigs.adapter.name, "paper")
    if not rigs.adapter.secrets:
        pytest.skip(f"{rigs.name} has no credentials")
    with pytest.raises(VenueRefused):
        rigs.adapter.open(account, {})
