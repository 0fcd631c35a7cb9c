app_name = "tasks_app"
urlpatterns: list = []
