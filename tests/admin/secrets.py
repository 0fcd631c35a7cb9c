"""Tasks whose parameters and results are partly secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretBytes, SecretStr
from pydantic_core.core_schema import CoreSchema, no_info_plain_validator_function

from tasks_app.tasks.base import BaseTask, ProgressHandle


class Key(BaseModel):
    kind: Literal["key"] = "key"
    name: str
    secret: SecretStr


class Password(BaseModel):
    kind: Literal["password"] = "password"
    user: str
    word: SecretStr | None = None
    spare: list[SecretBytes] = []


@dataclass
class Server:
    host: str
    token: SecretStr


class Node(BaseModel):
    label: str
    pin: SecretStr
    below: list[Node] = []


class Secretive(BaseTask):
    class Params(BaseModel):
        model_config = ConfigDict(extra="allow")

        plain: str
        token: SecretStr
        logins: dict[str, Annotated[Key | Password, Field(discriminator="kind")]] = {}
        server: Server | None = None
        pair: tuple[str, SecretStr] | None = None
        tree: Node | None = None
        anything: JsonValue = None
        aliased: Annotated[SecretStr, Field(alias="as-it-is-sent")] = SecretStr("")
        marked: Annotated[str, Field(json_schema_extra={"writeOnly": True})] = ""

    def execute(self, progress: ProgressHandle, **_params: object) -> Key: ...


class Odd(str):
    """A type without a JSON schema in Pydantic."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> CoreSchema:
        return no_info_plain_validator_function(cls)


class Unspoken(BaseTask):
    def execute(self, progress: ProgressHandle, odd: Odd, plain: int) -> Odd: ...


class Strict(BaseTask):
    class Params(BaseModel):
        plain: str

    def execute(self, progress: ProgressHandle, plain: str) -> None: ...


class Has(BaseModel):
    name: str
    value: SecretStr


class Not(BaseModel):
    rule: Rule


class All(BaseModel):
    every: list[Rule]


class Either(BaseModel):
    some: list[Rule]


Rule = Has | Not | All | Either


class Ruled(BaseTask):
    """A task whose parameters can be nested in many ways that a schema does not distinguish."""

    class Params(BaseModel):
        rule: Rule

    def execute(self, progress: ProgressHandle, rule: Rule) -> None: ...
