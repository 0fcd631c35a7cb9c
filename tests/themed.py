"""Settings of the site with a theme of the admin, which ADMIN_THEME names.

Without the site's content policy: the themes break it by scripts of their own.
"""

import os

from project.settings import *  # noqa: F403

INSTALLED_APPS = [os.environ["ADMIN_THEME"], *INSTALLED_APPS]  # noqa: F405
MIDDLEWARE = [one for one in MIDDLEWARE if not one.startswith("project.")]  # noqa: F405
