"""How secrets are recognised: by their Pydantic type, or by the marks in a JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Secret, SecretBytes, SecretStr

SECRET_TYPES = (Secret, SecretStr, SecretBytes)


def is_secret_schema(schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON schema marks its value as secret.

    Pydantic writes both marks for its secret types. Authors may set either for any other type.
    """
    return bool(schema.get("writeOnly")) or schema.get("format") == "password"
