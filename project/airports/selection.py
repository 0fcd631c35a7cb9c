"""Which airports a task is about."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Selection(BaseModel):
    """Every airport, as far as nothing narrows it."""

    model_config = ConfigDict(extra="forbid")

    country: Annotated[
        str,
        Field(
            pattern=r"^([A-Z]{2})?$",
            description="Its two letters. Left empty: every country.",
            examples=["NO"],
        ),
    ] = ""
    has_iata: Annotated[bool, Field(title="Only with an IATA code")] = False
    min_elevation: (
        Annotated[
            float,
            Field(ge=-2_000, le=30_000, description="Feet above sea level, as aviation counts."),
        ]
        | None
    ) = None
