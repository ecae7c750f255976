"""What is fixed when a data folder is made: its id, its number of shards, the seed of its fingerprints."""

from __future__ import annotations

import secrets

import msgspec

from imray.core.errors import CorruptError, InvalidError
from imray.log.schema import SCHEMA_VERSION
from imray.log.store import Store

NAME = "imray.json"
SHARDS_MAX = 9999


class Manifest(msgspec.Struct, frozen=True):
    """The content of `imray.json`."""

    cluster_id: str
    shards: int
    seed: int
    """Secret of the id fingerprints: clients choose ids, and may not choose their places in tables."""
    version: int = SCHEMA_VERSION


def create_or_open(store: Store, shards: int | None, shards_default: int = 2) -> Manifest:
    """The manifest of a data folder, made if it is new.

    InvalidError where `shards` is given and differs from the number that the folder was made with."""
    manifest = read(store)
    if manifest is None:
        wanted = shards if shards is not None else shards_default
        if not 1 <= wanted <= SHARDS_MAX:
            raise InvalidError(f"{wanted} shards: 1 to {SHARDS_MAX} are possible")
        new = Manifest(secrets.token_hex(8), wanted, secrets.randbits(64))
        store.put_if_absent(NAME, [msgspec.json.encode(new)])
        manifest = read(store)
        assert manifest is not None
    if shards is not None and shards != manifest.shards:
        raise InvalidError(
            f"this data folder was made with {manifest.shards} shards and cannot have {shards}: "
            f"leave the number out or make a new folder"
        )
    return manifest


def read(store: Store) -> Manifest | None:
    """The manifest, or None where the folder has none."""
    data = store.get(NAME)
    if data is None:
        return None
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as e:
        raise CorruptError(NAME, "the whole file", str(e)) from e
    if manifest.version > SCHEMA_VERSION:
        raise InvalidError(f"{NAME} has version {manifest.version}; this imray knows up to {SCHEMA_VERSION}: upgrade")
    return manifest
