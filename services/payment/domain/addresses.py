"""Whether an address belongs to a chain, and whether its checksum holds.

Bitcoin: base58check (P2PKH, P2SH), bech32 for witness version 0 (BIP 173), bech32m for later ones (BIP 350).
EVM: EIP-55. An address all in lower case carries no checksum and is refused: a mistyped one could not be told.

What would surprise you: Keccak is loaded when the first EVM address is checked, not at import: it is 30 MB.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Final, Literal

Network = Literal["mainnet", "testnet", "signet", "regtest"]

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32_SUM: Final = 1
_BECH32M_SUM: Final = 0x2BC830A3
_LONGEST: Final = 90

_PREFIX: Final[dict[Network, str]] = {"mainnet": "bc", "testnet": "tb", "signet": "tb", "regtest": "bcrt"}
_MAIN_VERSIONS: Final = (0x00, 0x05)
_TEST_VERSIONS: Final = (0x6F, 0xC4)
_VERSION_0_LENGTHS: Final = (20, 32)
_VERSION_1_LENGTH: Final = 32
_HASH_AND_VERSION: Final = 21

_EVM: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)


def evm_problem(address: str) -> str | None:
    """Return why this is no EVM address; None when it is one."""
    if not _EVM.fullmatch(address):
        return "an address of this chain is 0x and 40 hexadecimal digits"
    from eth_utils.address import is_checksum_address  # noqa: PLC0415 - memory, see above

    return None if is_checksum_address(address) else "the checksum of the address (EIP-55, its capitals) is wrong"


def bitcoin_problem(address: str, network: Network) -> str | None:
    """Return why this is no address of that Bitcoin network; None when it is one."""
    if not address.isascii() or len(address) > _LONGEST:
        return "that is not an address of Bitcoin"
    prefix, separator, _ = address.lower().rpartition("1")
    if separator and prefix in _PREFIX.values():
        return _segwit_problem(address, _PREFIX[network])
    return _base58_problem(address, _MAIN_VERSIONS if network == "mainnet" else _TEST_VERSIONS)


def _base58_problem(address: str, versions: Sequence[int]) -> str | None:
    number = 0
    for sign in address:
        digit = _BASE58.find(sign)
        if digit < 0:
            return "that is not an address of Bitcoin"
        number = number * 58 + digit
    leading = len(address) - len(address.lstrip("1"))
    decoded = bytes(leading) + number.to_bytes((number.bit_length() + 7) // 8)
    payload, checksum = decoded[:-4], decoded[-4:]
    if len(payload) != _HASH_AND_VERSION:
        return "that is not an address of Bitcoin"
    if hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4] != checksum:
        return "the checksum of the address is wrong"
    return None if payload[0] in versions else "the address belongs to another network of Bitcoin"


def _segwit_problem(address: str, prefix: str) -> str | None:
    if address not in {address.lower(), address.upper()}:
        return "an address of this kind is all in small letters or all in capitals"
    known, _, data = address.lower().rpartition("1")
    values = [_BECH32.find(sign) for sign in data]
    if min(values, default=-1) < 0:
        return "that is not an address of Bitcoin"
    expanded = [ord(sign) >> 5 for sign in known] + [0] + [ord(sign) & 31 for sign in known]
    checksum = _polymod([*expanded, *values])
    if checksum != (_BECH32_SUM if values[0] == 0 else _BECH32M_SUM):
        return "the checksum of the address is wrong"
    if known != prefix:
        return "the address belongs to another network of Bitcoin"
    program = values[1:-6]
    length, rest = divmod(len(program) * 5, 8)
    padding = program[-1] & ((1 << rest) - 1) if program else 1
    fits = {0: length in _VERSION_0_LENGTHS, 1: length == _VERSION_1_LENGTH}.get(values[0], False)
    return None if fits and rest < 5 and padding == 0 else "that is not an address of Bitcoin"  # noqa: PLR2004 - BIP 173


def _polymod(values: Sequence[int]) -> int:
    """The checksum of BIP 173."""
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            checksum ^= term if (top >> bit) & 1 else 0
    return checksum
