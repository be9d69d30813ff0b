"""What the runbooks tell people to ask Postgres can be asked."""

import re
from pathlib import Path

import asyncpg

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
_BLOCK = re.compile(r"```sql\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`(select [^`]*)`")


async def test_every_query_of_the_runbooks_is_one_that_the_schemas_answer(database_url: str):
    queries: list[tuple[str, str]] = []
    for page in sorted(RUNBOOKS.glob("*.md")):
        for found in (*_BLOCK.findall(page.read_text()), *_INLINE.findall(page.read_text())):
            queries += [(page.name, one.replace("<pid>", "1")) for one in found.split(";") if one.strip()]
    assert len(queries) >= 8
    admin = await asyncpg.connect(database_url)
    wrong: list[str] = []
    for page, query in queries:
        try:
            await admin.prepare(query)
        except asyncpg.PostgresError as error:
            wrong.append(f"{page}: {error}: {query}")
    await admin.close()
    assert wrong == []
