from __future__ import annotations

from typing import Any, cast

from django import forms
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Count
from django.template.defaultfilters import filesizeformat

from project.airports import csvfile
from project.airports.models import Airport
from project.airports.selection import Selection

UPLOAD = "upload"
MAX_UPLOAD_BYTES = 50 * 1024 * 1024


class ImportForm(forms.Form):
    source = forms.ChoiceField(
        label="Which airports?",
        choices=[
            ("bundled", "All airports of the world, about 28,000, from the package airportsdata"),
            (UPLOAD, "My own CSV file"),
        ],
        initial="bundled",
        widget=forms.RadioSelect,
    )
    file = forms.FileField(
        label="CSV file",
        required=False,
        # An empty file is refused below, with a message that gives the remedy.
        allow_empty_file=True,
        help_text=f"UTF-8, with the columns {', '.join(csvfile.COLUMNS)}. "
        "Invalid rows are reported; all others are imported.",
        widget=forms.FileInput(attrs={"accept": ".csv,text/csv"}),
    )

    def clean_file(self) -> UploadedFile[bytes] | None:
        upload: UploadedFile[bytes] | None = self.cleaned_data["file"]
        if upload is None or self.data.get("source") != UPLOAD:
            return None
        if (upload.size or 0) > MAX_UPLOAD_BYTES:
            raise forms.ValidationError(
                f"The file has {filesizeformat(upload.size or 0)}. The maximum is "
                f"{filesizeformat(MAX_UPLOAD_BYTES)}. Split the file."
            )
        try:
            csvfile.check_head(upload.read(csvfile.HEAD_BYTES))
        except csvfile.NotAirportsCSV as error:
            raise forms.ValidationError(str(error)) from error
        return upload

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("source") == UPLOAD and not data.get("file") and not self.has_error("file"):
            self.add_error("file", "Choose the file to import.")
        return data


class SelectionForm(forms.Form):
    """A form for Selection, with the same fields and limits."""

    country = forms.ChoiceField(required=False)
    has_iata = forms.BooleanField(
        label="Only airports with an IATA code",
        required=False,
        help_text="The three letters on a luggage tag. About one airport in four has a code.",
    )
    min_elevation = forms.FloatField(
        label="Minimum elevation",
        required=False,
        min_value=-2_000,
        max_value=30_000,
        help_text="Feet above sea level. Leave blank for any elevation.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        counts = Airport.objects.values_list("country").annotate(Count("pk")).order_by("country")
        country = cast(forms.ChoiceField, self.fields["country"])
        country.choices = [("", "All countries")] + [
            (code, f"{code} ({count:,})") for code, count in counts
        ]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if not self.errors and not Airport.objects.selected(self.selection()).exists():
            raise forms.ValidationError(
                "No airport matches. Remove some filters, or import airports first."
            )
        return data

    def selection(self) -> Selection:
        values = {name: self.cleaned_data[name] for name in Selection.model_fields}
        return Selection(**values)

    def params(self) -> dict[str, Any]:
        return dict(self.cleaned_data)


class ReachForm(SelectionForm):
    range_km = forms.FloatField(
        label="Maximum length of a hop",
        initial=500,
        min_value=10,
        max_value=2_000,
        help_text="Kilometres, from 10 to 2,000.",
    )
    hops = forms.IntegerField(
        label="Hops",
        initial=4,
        min_value=1,
        max_value=20,
        help_text="At most this many, from 1 to 20. More hops and longer hops take more time.",
    )
