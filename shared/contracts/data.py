"""What the data service tells: option chains (their underlyings' quotes stand in quotes.py).

A chain travels as one Arrow IPC stream (compressed record batches), its scalar fields as JSON in the schema
metadata; a market's snapshot is one message per underlying, not one per contract.
"""

from datetime import date
from typing import Annotated, Any, ClassVar, Final, Self
from uuid import UUID

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema

from shared.contracts.base import Event
from shared.contracts.quotes import Source
from shared.contracts.topics import CHAINS, Topic

_METADATA_KEY: Final = b"openbell"
_READ: Final = pa.ipc.IpcReadOptions(use_threads=False)  # chains are small, and lanes run at once already

CHAIN_SCHEMA: Final = pa.schema(
    [
        pa.field("contract", pa.string(), nullable=False),  # OCC symbol without padding: AAPL260724C00110000
        pa.field("expiration", pa.date32(), nullable=False),
        pa.field("right", pa.string(), nullable=False),  # "C" or "P"
        pa.field("strike", pa.float64(), nullable=False),  # USD
        pa.field("bid", pa.float64()),  # USD a share
        pa.field("ask", pa.float64()),
        pa.field("last", pa.float64()),
        pa.field("volume", pa.float64()),  # contracts traded in the session so far
        pa.field("open_interest", pa.float64()),  # contracts, as of the previous session
        pa.field("iv", pa.float64()),  # a year, 0.25 = 25%; null where the source has none
        pa.field("delta", pa.float64()),
        pa.field("gamma", pa.float64()),
        pa.field("theta", pa.float64()),
        pa.field("vega", pa.float64()),
    ]
)
"""Columns of a chain, in order. The first ten, up to `iv`, are required of every source; greeks may be null."""


class ChainHeader(BaseModel):
    """The scalar part of a chain, as it stands in the Arrow schema metadata."""

    model_config = ConfigDict(frozen=True)

    symbol: str
    session: date  # the exchange's trading date
    as_of: AwareDatetime  # the source's time of this snapshot
    source: Source
    simulated: bool
    delay_s: float  # how far the source is behind the market by its own statement
    close: float | None  # the underlying in the regular session, USD; None when the source gave none
    bid: float | None = None
    ask: float | None = None


class ChainCollected(Event):
    """One underlying's whole option chain at one moment."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    type: ClassVar[str] = "data.chain.collected.v1"
    topic: ClassVar[Topic] = CHAINS
    content_type: ClassVar[str] = "application/vnd.apache.arrow.stream"

    header: ChainHeader
    contracts: Annotated[
        pa.Table, WithJsonSchema({"type": "object", "description": "Arrow columns: " + ", ".join(CHAIN_SCHEMA.names)})
    ] = Field(repr=False)

    @property
    def key(self) -> str:
        """The underlying's symbol."""
        return self.header.symbol

    def to_bytes(self) -> bytes:
        """Return the Arrow IPC stream, zstd-compressed."""
        table = self.contracts.replace_schema_metadata({_METADATA_KEY: self.header.model_dump_json().encode()})
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table.combine_chunks())
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, body: bytes, *, id: UUID, time: Any) -> Self:  # noqa: A002 - the field's own name
        """Read the stream back. Raises ValueError when it is not Arrow or lacks header or columns."""
        table = pa.ipc.open_stream(body, options=_READ).read_all()  # pa.ArrowInvalid is a ValueError
        table.validate(full=True)  # Arrow reads where offsets point: unchecked, bad ones end the process
        metadata = (table.schema.metadata or {}).get(_METADATA_KEY)
        if metadata is None:
            raise ValueError("the Arrow schema carries no 'openbell' metadata with the chain's header")
        if not table.schema.equals(CHAIN_SCHEMA):
            table = _conform(table)
        return cls(id=id, time=time, header=ChainHeader.model_validate_json(metadata), contracts=table)


def _conform(table: Any) -> Any:
    """Bring columns of another writer into our order and types; those that may be absent become null."""
    names = set(table.schema.names)
    missing = [name for name in CHAIN_SCHEMA.names[:10] if name not in names]
    if missing:
        raise ValueError(f"the chain lacks required columns: {', '.join(missing)}")
    for field in CHAIN_SCHEMA:
        if field.name not in names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(CHAIN_SCHEMA.names).cast(CHAIN_SCHEMA)
