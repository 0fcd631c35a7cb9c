import os
import warnings

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
# WhiteNoise's files are read as a whole under ASGI, and each is small; nothing to warn of.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume synchronous iterators")
site = get_asgi_application()

# Only now: the routing imports models, which need the apps that the line above sets up.
from tasks_app import with_task_streams  # noqa: E402

application = with_task_streams(site)
