"""``facial-service process``: process images and folders of images, on all local cores or on a running service.

``inputs`` finds the images, ``jobs`` pairs each one with its input files and result paths, and ``outputs`` decides
which results are up to date. ``processor`` processes one image, ``local_pool`` and ``remote_pool`` process many, and
``report`` shows the progress. ``command`` is the command line, which connects them.
"""
