import os
import warnings

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
# Under ASGI, Django reads each of WhiteNoise's files whole. They are small, so this is harmless.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume synchronous iterators")
site = get_asgi_application()

# Imported last: it imports models, which need the apps that the line above sets up.
from tasks_app import with_task_streams  # noqa: E402

application = with_task_streams(site)
