"""``facial-service process``: photos and folders of photos to regions, on every core or by a running service.

``inputs`` finds photos and what belongs to them, ``naming`` and ``outputs`` say where results go and which are there
already, ``plan`` puts both together; ``work`` does one photo, ``local`` and ``remote`` do many, ``report`` tells of it.
"""
