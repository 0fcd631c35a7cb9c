"""The airports that a task works on."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Selection(BaseModel):
    """Filters for airports. Without any, it selects every airport."""

    model_config = ConfigDict(extra="forbid")

    country: Annotated[
        str,
        Field(
            pattern=r"^([A-Z]{2})?$",
            description="Two letters. Leave blank for all countries.",
            examples=["NO"],
        ),
    ] = ""
    has_iata: Annotated[bool, Field(title="Only with an IATA code")] = False
    min_elevation: (
        Annotated[
            float,
            Field(ge=-2_000, le=30_000, description="Feet above sea level."),
        ]
        | None
    ) = None
