"""Which airports a task is about."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Selection(BaseModel):
    """Every airport, as far as nothing narrows it."""

    model_config = ConfigDict(extra="forbid")

    country: Annotated[str, Field(pattern=r"^([A-Z]{2})?$")] = ""
    has_iata: bool = False
    #: Feet above sea level, as aviation counts.
    min_elevation: Annotated[float, Field(ge=-2_000, le=30_000)] | None = None
