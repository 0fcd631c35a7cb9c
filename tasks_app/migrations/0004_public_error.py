from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tasks_app", "0003_unfinished_and_stuck"),
    ]

    operations = [
        # May be null and has no default, so no database rewrites the table.
        migrations.AddField(
            model_name="task",
            name="public_error",
            field=models.TextField(null=True, verbose_name="error for the owner"),
        ),
    ]
