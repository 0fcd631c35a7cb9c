from django.urls import path

from project.airports import views

urlpatterns = [
    path("", views.airport_list, name="airports"),
    path("import/", views.StartImport.as_view(), name="start-import"),
    path("export/", views.StartExport.as_view(), name="start-export"),
    path("reach/", views.StartReach.as_view(), name="start-reach"),
]
