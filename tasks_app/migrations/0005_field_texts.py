from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tasks_app", "0004_public_error"),
    ]

    operations = [
        migrations.AlterField(
            model_name="task",
            name="public_error",
            field=models.TextField(null=True, verbose_name="error shown to the owner"),
        ),
        migrations.AlterField(
            model_name="task",
            name="stuck",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Ignored the stop request; its thread was abandoned",
                verbose_name="stuck",
            ),
        ),
        migrations.AlterField(
            model_name="worker",
            name="hands",
            field=models.PositiveIntegerField(
                help_text="Tasks that it can run at the same time", verbose_name="threads"
            ),
        ),
        migrations.AlterField(
            model_name="worker",
            name="pid",
            field=models.PositiveIntegerField(verbose_name="process ID"),
        ),
        migrations.AlterField(
            model_name="worker",
            name="queues",
            field=models.JSONField(
                default=list, help_text="Empty means all queues", verbose_name="queues"
            ),
        ),
        migrations.AlterField(
            model_name="worker",
            name="stuck",
            field=models.PositiveIntegerField(
                db_default=0,
                default=0,
                help_text="Threads of tasks that ignored the stop request",
                verbose_name="stuck threads",
            ),
        ),
    ]
