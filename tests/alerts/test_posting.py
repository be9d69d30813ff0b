"""Posts over TLS: only to who proves to be the host."""

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from services.alerts.adapters.posting import Posting
from shared.clock import utc_now
from shared.errors import Transient

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\n{"id": "1"}'


def certificate(folder: Path) -> Path:
    """Write a certificate for localhost that it signed itself, and its key."""
    key, now = generate_private_key(SECP256R1()), utc_now()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    path = folder / "localhost.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + made.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "nobody's"])
async def test_only_who_proves_to_be_the_host_gets_a_post(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    path, heard = certificate(tmp_path), list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"{}"))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        posting = Posting("Discord", connections=1, timeout_s=10.0)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/s3cret"
        if trusted:
            assert (await posting.post(url, {"wait": "true"}, json={})).told == {"id": "1"}
        else:
            with pytest.raises(Transient, match="CertificateError") as caught:
                await posting.post(url, {"wait": "true"}, json={})
            assert "s3cret" not in str(caught.value)
        await posting.close()
    assert len(heard) == trusted
